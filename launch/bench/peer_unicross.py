"""The PyTorch peer of `medreport bench unicross`: updates and beam search of `launch.bench.torch_unicross`,
conditioning "published", on a frozen `launch.bench.torch_clip`.

It keeps the two things that made it faster on a CPU: all views go through the convolutions at once, channels last.
Neither scaled_dot_product_attention nor BatchNorms folded into the convolutions did, so the explicit code stands.
"""

import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from launch.bench.peer import Works, serve
from launch.bench.torch_clip import TorchClip
from launch.bench.torch_unicross import UniCrossAdapter

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Backbone(nn.Module):
    """A `TorchClip` with the interface that `UniCrossAdapter` asks for."""

    def __init__(self, clip: TorchClip):
        super().__init__()
        self.clip = clip
        self.stem, self.dense_pool = clip.visual.stem, clip.visual.attnpool.dense
        self.layer1, self.layer2, self.layer3, self.layer4 = (getattr(clip.visual, f"layer{i}") for i in (1, 2, 3, 4))
        self.token_embedding, self.positional_embedding = clip.token_embedding, clip.positional_embedding
        blocks = clip.transformer["resblocks"].children()
        self.blocks = [lambda x, block=block: block(x.transpose(0, 1)).transpose(0, 1) for block in blocks]
        self.ln_final, self.text_projection = clip.ln_final, clip.text_projection


def start(setup: dict[str, Any], device: str) -> tuple[dict[str, str], Works]:
    """The model of `setup["shape"]` with random weights and one random batch, for `launch.bench.peer.serve`."""
    torch.set_flush_denormal(True)  # as XLA does
    shape = SimpleNamespace(**setup["shape"])
    with torch.device(device):
        clip = TorchClip(SimpleNamespace(**setup["clip"])).eval().requires_grad_(False)
        model = make_model(clip, shape)
        size = (shape.rows, shape.length)
        pixels = (shape.views, shape.image_size, shape.image_size)
        images, studies = (torch.randint(256, (n, *pixels), dtype=torch.uint8) for n in (shape.rows, shape.reports))
        ids, targets = (torch.randint(1, shape.vocabulary, size) for _ in range(2))
        mask = torch.ones(size, dtype=torch.bool)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-5, weight_decay=0.0, fused=True)

    def train(updates: int) -> float:
        started = time.perf_counter()
        for _ in range(updates):
            loss = report_loss(model, images, ids, targets, mask)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
        return time.perf_counter() - started

    def generate(new_tokens: int) -> float:
        started = time.perf_counter()
        beam_search(model, studies, 0, shape.beams, new_tokens).cpu()
        return time.perf_counter() - started

    return {}, {"train": train, "generate": generate}


def make_model(clip: TorchClip, shape: Any) -> UniCrossAdapter:
    """The model around a CLIP; `shape` has the fields of `launch.bench.unicross.Shape`."""
    model: Any = UniCrossAdapter(
        Backbone(clip),
        shape.vocabulary,
        channels=(shape.vision_width * 8, shape.vision_width * 16, shape.vision_width * 32),
        text_width=shape.text_width,
        embed=shape.embed,
        width=shape.text_width,
        heads=shape.heads,
        ffn=4 * shape.text_width,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
    )
    return model.to(memory_format=torch.channels_last)


def normalise(images: UInt8[Tensor, "B V H W"]) -> Float[Tensor, "B V 3 H W"]:
    """Grey images as CLIP takes them."""
    mean, std = (torch.tensor(numbers, device=images.device)[:, None, None] for numbers in (CLIP_MEAN, CLIP_STD))
    return (images[:, :, None].float() / 255 - mean) / std


def report_loss(
    model: UniCrossAdapter,
    images: UInt8[Tensor, "B V H W"],
    ids: Int[Tensor, "B S"],
    targets: Int[Tensor, "B S"],
    mask: Bool[Tensor, "B S"],
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the tokens under `mask`."""
    logits = model(normalise(images), ids, mask)["logits"]
    return F.cross_entropy(logits[mask], targets[mask])


@torch.inference_mode()
def beam_search(
    model: UniCrossAdapter, images: UInt8[Tensor, "B V H W"], start_id: int, beams: int, new_tokens: int
) -> Int[Tensor, "B T"]:
    """The best report of T tokens after a start token; there is no end token. All is computed anew for each prefix."""
    batch = len(images)
    prefixes = torch.full((batch, 1, 1), start_id, device=images.device)  # [B K t]; at first one beam
    scores = torch.zeros(batch, 1, device=images.device)
    pixels = normalise(images)
    for _ in range(new_tokens):
        rows, running = prefixes.flatten(0, 1), prefixes.shape[1]
        mask = torch.ones(rows.shape, dtype=torch.bool, device=images.device)
        logits = model(pixels.repeat_interleave(running, 0), rows, mask)["logits"][:, -1]
        totals = scores[..., None] + logits.log_softmax(-1).unflatten(0, (batch, running))
        vocabulary = totals.shape[-1]
        scores, indices = totals.flatten(1).topk(beams)
        parents, tokens = indices // vocabulary, indices % vocabulary
        kept = prefixes.gather(1, parents[..., None].expand(-1, -1, prefixes.shape[-1]))
        prefixes = torch.cat([kept, tokens[..., None]], -1)
    return prefixes[:, 0, 1:]


if __name__ == "__main__":
    serve(start)

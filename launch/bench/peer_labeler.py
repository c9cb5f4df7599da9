"""The PyTorch peer of `medreport bench labeler`: CheXbert's module on BertModel of transformers, given tokens."""

import importlib.metadata
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from launch.bench.peer import Works, serve


def start(setup: dict[str, Any], device: str) -> tuple[dict[str, str], Works]:
    """A labeler of `setup` with random weights, for `peer.serve`."""
    torch.set_flush_denormal(True)  # as XLA does
    return {"transformers": importlib.metadata.version("transformers")}, labeler_works(setup, device)


def labeler_works(setup: dict[str, Any], device: str) -> Works:
    """Classes, saliency, and both, either by one pass or apart."""
    with torch.device(device):
        labeler = Labeler(setup["encoder"], setup["classes"]).eval().requires_grad_(False)

    def timed(work: Callable[..., Any], batches: list[dict[str, Any]], *names: str) -> float:
        placed = [[torch.tensor(batch[name], device=device) for name in names] for batch in batches]
        started = time.perf_counter()
        for arrays in placed:
            work(*arrays)
        return time.perf_counter() - started

    def labels(batches: list[dict[str, Any]]) -> float:
        return timed(lambda *arrays: labeler.classes(*arrays).cpu(), batches, "ids", "mask")

    def saliency(batches: list[dict[str, Any]]) -> float:
        return timed(lambda *arrays: labeler.saliency(*arrays)[0].cpu(), batches, "ids", "mask", "targets")

    def both(batches: list[dict[str, Any]]) -> float:
        def work(*arrays: Tensor) -> None:
            for found in labeler.saliency(*arrays):
                found.cpu()

        return timed(work, batches, "ids", "mask", "targets")

    def apart(batches: list[dict[str, Any]]) -> float:
        return labels(batches) + saliency(batches)

    return {"labels": labels, "saliency": saliency, "both": both, "apart": apart}


class Labeler(nn.Module):
    """CheXbert's module, whose state dict is that of `chexbert.pth`."""

    def __init__(self, encoder: dict[str, Any], classes: list[int]):
        super().__init__()
        known = transformers.BertConfig().to_dict()
        config: Any = transformers.BertConfig(**{name: encoder[name] for name in encoder if name in known})
        self.bert = transformers.BertModel._from_config(config, attn_implementation="sdpa", add_pooling_layer=False)
        self.linear_heads = nn.ModuleList(nn.Linear(config.hidden_size, count) for count in classes)

    def forward(self, mask: Int[Tensor, "B S"], **inputs: Tensor) -> list[Tensor]:
        """Logits of each label."""
        first = self.bert(attention_mask=mask, **inputs).last_hidden_state[:, 0]
        return [head(first) for head in self.linear_heads]

    @torch.no_grad()
    def classes(self, ids: Int[Tensor, "B S"], mask: Int[Tensor, "B S"]) -> Int[Tensor, "B K"]:
        """The likeliest class of each label."""
        return torch.stack([logits.argmax(-1) for logits in self(mask, input_ids=ids)], dim=1)

    def saliency(
        self, ids: Int[Tensor, "B S"], mask: Int[Tensor, "B S"], targets: Bool[Tensor, "B K"]
    ) -> tuple[Float[Tensor, "B S"], Int[Tensor, "B K"]]:
        """Length of the gradient of the targets' positive logits with respect to each input embedding; and classes."""
        words = self.bert.embeddings.word_embeddings(ids).requires_grad_(True)
        found = self(mask, inputs_embeds=words)
        positive = torch.stack([logits[:, 1] for logits in found], dim=1)
        (gradient,) = torch.autograd.grad((positive * targets).sum(), words)
        return gradient.norm(dim=-1), torch.stack([logits.argmax(-1) for logits in found], dim=1)


if __name__ == "__main__":
    serve(start)

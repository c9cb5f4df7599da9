"""UniCrossAdapter in plain PyTorch: the independent side of the parity tests and of `medreport bench unicross --peer`.

Built from the equations of the paper as restated in the project's notes, Eq. 3 as printed (cross-attention reads the
other modality after its self-attention). It is explicit: it has no dropout, and every BatchNorm outside CLIP is a
folded scale and bias.

Letters of the shapes: B batch, V views, S text positions, N visual tokens (row-major), D width, C channels, h w grid.
"Grid" is the grid of CLIP's layer3 (14 x 14 at 224); layer2 has twice its side and layer4 half.

`clip` is any object with stem, layer1..layer4 and dense_pool (NCHW to NCHW), token_embedding, positional_embedding
[context, width], blocks (causal, batch-first), ln_final and text_projection [width, embed]. It is not frozen here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class UniCrossAdapter(nn.Module):
    """The report generator: CLIP coupled by three adapter stages, fusion, vision Transformer, decoder."""

    def __init__(
        self,
        clip: Any,
        vocabulary: int,
        *,
        channels: tuple[int, int, int] = (512, 1024, 2048),
        text_width: int = 512,
        embed: int = 512,
        adapter_width: int = 64,
        adapter_heads: int = 4,
        adapter_ffn: int = 128,
        width: int = 512,
        heads: int = 8,
        ffn: int = 2048,
        encoder_layers: int = 3,
        decoder_layers: int = 3,
    ):
        super().__init__()
        if text_width != width:
            raise ValueError(f"the decoder reads the text features: text_width {text_width} must equal width {width}")
        if len(clip.blocks) % 3:
            raise ValueError(f"{len(clip.blocks)} text blocks cannot be split into three equal groups")
        self.clip = clip
        self.adapters = nn.ModuleList(
            AdapterStage(stage, channels[stage], text_width, adapter_width, adapter_heads, adapter_ffn)
            for stage in range(3)
        )
        self.fusion = Fusion((channels[0], channels[1], embed), embed, width, heads)
        self.encoder = VisionTransformer(width, heads, ffn, encoder_layers)
        self.decoder = Decoder(width, heads, ffn, decoder_layers)
        self.logits = nn.Linear(width, vocabulary)

    def forward(
        self,
        images: Float[Tensor, "B V 3 H W"],
        ids: Int[Tensor, "B S"],
        mask: Bool[Tensor, "B S"],
        end: Int[Tensor, " B"] | None = None,
        causal: bool = False,
    ) -> dict[str, Any]:
        """Logits [B S vocabulary] and what leads to them; "views" holds one dict per view (see `encode_images`).

        mask is True at real tokens; position 0 must be real, or the first causal query would have no key. end replaces
        the position of the global text feature; causal makes the self-attention of the text adapters causal. It does
        not stop the leak by itself: the image still attends to the whole text.
        """
        if ids.shape[1] > len(self.clip.positional_embedding):
            raise ValueError(f"{ids.shape[1]} tokens, but CLIP has {len(self.clip.positional_embedding)} positions")
        mask = mask.bool()
        if not mask[:, 0].all():
            raise ValueError("a text starts with padding: pad on the right")
        # Published: the largest id stands for "end of text", whatever the vocabulary; the first one if it repeats.
        end = ids.argmax(-1) if end is None else end
        count = images.shape[1]
        own, real, last = (x.repeat_interleave(count, 0) for x in (ids, mask, end))  # the text of each image
        read = self.encode_images(images.flatten(0, 1), own, real, last, causal)
        views = [by_view(read, count, view) for view in range(count)]
        memory = self.encoder([view["fused"] for view in views])
        text = torch.stack([view["text"] for view in views]).sum(0)
        hidden = self.decoder(text, memory, mask)
        return {"views": views, "memory": memory, "text": text, "hidden": hidden, "logits": self.logits(hidden)}

    def encode_images(self, images: Float[Tensor, "B 3 H W"], ids, mask, end, causal) -> dict[str, Any]:
        """CLIP with adapters, then fusion (Eq. 1-6), of single images with their texts.

        Lists of three, by stage: reduced_visual, reduced_text, interacted_visual, interacted_text [B N adapter_width];
        adapted_visual [B C h w], adapted_text [B S D] (the recovered sums); projected, modulated [B D h w].
        Single: pooled [B embed h w], text [B S D], global_text [B embed], fused [B D h w].
        """
        clip = self.clip
        visual = clip.layer1(clip.stem(images))
        text = clip.token_embedding(ids) + clip.positional_embedding[: ids.shape[1]]
        group = len(clip.blocks) // 3
        stages: list[dict[str, Tensor]] = []
        for stage, layer in enumerate((clip.layer2, clip.layer3, clip.layer4)):
            visual = layer(visual)
            for block in clip.blocks[stage * group : (stage + 1) * group]:
                text = block(text)
            stages.append(self.adapters[stage](visual, text, stages[-1] if stages else None, mask, causal))
            visual, text = stages[-1]["adapted_visual"], stages[-1]["adapted_text"]

        text = clip.ln_final(text)
        global_text = text[torch.arange(len(text), device=text.device), end] @ clip.text_projection
        pooled = clip.dense_pool(visual)
        maps = [stages[0]["adapted_visual"], stages[1]["adapted_visual"], pooled]
        gathered = {name: [stage[name] for stage in stages] for name in stages[0]}
        fused = self.fusion(maps, global_text)
        return {**gathered, "pooled": pooled, "text": text, "global_text": global_text, **fused}


class AdapterStage(nn.Module):
    """Couples one visual layer with one group of text blocks (Eq. 1-4)."""

    def __init__(self, stage: int, channels: int, text_width: int, width: int, heads: int, ffn: int):
        super().__init__()
        self.reduce_visual = to_grid(stage, channels, width)
        self.reduce_text = nn.Linear(text_width, width)
        self.visual = ModalityAdapter(stage, width, heads, ffn)
        self.text = ModalityAdapter(stage, width, heads, ffn)
        self.recover_visual = from_grid(stage, width, channels)
        self.recover_text = nn.Linear(width, text_width)

    def forward(self, visual_map, text, previous: dict[str, Tensor] | None, mask, causal) -> dict[str, Tensor]:
        reduced_map = self.reduce_visual(visual_map)
        v, t = tokens(reduced_map), self.reduce_text(text)  # Eq. 1
        if previous is not None:
            v = self.visual.residual_norm(v + previous["reduced_visual"])
            t = self.text.residual_norm(t + previous["reduced_text"])
        real = mask[:, None, None, :]
        v1 = self.visual.attend_self(v, None)  # Eq. 2
        t1 = self.text.attend_self(t, real & causal_mask(t) if causal else real)
        v2 = self.visual.attend_other(v1, t1, real)  # Eq. 3: both read the other's v1 and t1, not its v2 and t2
        t2 = self.text.attend_other(t1, v1, None)
        return {
            "reduced_visual": v,
            "reduced_text": t,
            "interacted_visual": v2,
            "interacted_text": t2,
            "adapted_visual": visual_map + self.recover_visual(as_map(v2, reduced_map)),  # Eq. 4
            "adapted_text": text + self.recover_text(t2),
        }


class ModalityAdapter(nn.Module):
    """One modality's half of a stage; every sublayer is LayerNorm(x + f(x))."""

    def __init__(self, stage: int, width: int, heads: int, ffn: int):
        super().__init__()
        if stage > 0:
            self.residual_norm = nn.LayerNorm(width)
        self.self_attention, self.self_norm = Attention(width, heads), nn.LayerNorm(width)
        self.cross_attention, self.cross_norm = Attention(width, heads), nn.LayerNorm(width)
        self.ffn, self.ffn_norm = FeedForward(width, ffn), nn.LayerNorm(width)

    def attend_self(self, x, allowed):
        return self.self_norm(x + self.self_attention(x, x, allowed))

    def attend_other(self, x, other, allowed):
        x = self.cross_norm(x + self.cross_attention(x, other, allowed))
        return self.ffn_norm(x + self.ffn(x))


class Fusion(nn.Module):
    """Three scales to one map (Eq. 5 and 6). The softmax of the modulation has one key, so it gates channels."""

    def __init__(self, channels: tuple[int, int, int], embed: int, width: int, heads: int):
        super().__init__()
        self.project = nn.ModuleList(to_grid(scale, channels[scale], width) for scale in range(3))
        self.project_affine = nn.ModuleList(Affine(width) for _ in range(3))
        self.text = nn.Linear(embed, width)
        self.modulate = nn.ModuleList(Attention(width, heads) for _ in range(3))
        self.merge, self.merge_affine = nn.Conv2d(3 * width, width, 1, bias=False), Affine(width)
        self.locate, self.locate_affine = nn.Conv2d(width + 2, width, 3, padding=1, bias=False), Affine(width)
        self.refine, self.refine_affine = nn.Conv2d(width, width, 3, padding=1, bias=False), Affine(width)

    def forward(self, maps: list[Tensor], global_text: Float[Tensor, "B embed"]) -> dict[str, Any]:
        token = self.text(global_text)[:, None]
        projected, modulated = [], []
        for project, affine, attention, x in zip(self.project, self.project_affine, self.modulate, maps, strict=True):
            projected.append(F.relu(affine(project(x))))
            query = tokens(projected[-1])
            modulated.append(as_map(query * attention(query, token), projected[-1]))
        x = F.relu(self.merge_affine(self.merge(torch.cat(modulated, 1))))
        x = torch.cat([x, coordinates(x).expand(len(x), -1, -1, -1)], 1)
        x = F.relu(self.locate_affine(self.locate(x)))
        fused = F.relu(self.refine_affine(self.refine(x)))
        return {"projected": projected, "modulated": modulated, "fused": fused}


class VisionTransformer(nn.Module):
    """Fused maps of all views to one memory [B, 1 + V h w, D]; token 0 is the class token, then view 1, view 2, ..."""

    def __init__(self, width: int, heads: int, ffn: int, layers: int):
        super().__init__()
        self.embed, self.embed_norm = nn.Linear(width, width), nn.LayerNorm(width)
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.layers = nn.ModuleList(PreNormLayer(width, heads, ffn, cross=False) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, maps: list[Float[Tensor, "B D h w"]]) -> Float[Tensor, "B N D"]:
        batch, width, height, columns = maps[0].shape
        positions = sincos_positions(height, columns, width).to(maps[0])
        views = [self.embed_norm(self.embed(tokens(x)) + positions) for x in maps]
        # The class token's position is zero, and the LayerNorm above is of the patches alone.
        x = torch.cat([self.class_token.expand(batch, 1, width), *views], 1)
        for layer in self.layers:
            x = layer(x)
        again = torch.cat([positions.new_zeros(1, width), *[positions] * len(maps)])
        return self.norm(x + again)


class Decoder(nn.Module):
    """Causal decoder whose input is CLIP's adapted text sequence: it has no embedding and no positions of its own."""

    def __init__(self, width: int, heads: int, ffn: int, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(PreNormLayer(width, heads, ffn, cross=True) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, text: Float[Tensor, "B S D"], memory, mask: Bool[Tensor, "B S"]) -> Float[Tensor, "B S D"]:
        allowed = mask[:, None, None, :] & causal_mask(text)
        for layer in self.layers:
            text = layer(text, allowed, memory)
        return self.norm(text)


class PreNormLayer(nn.Module):
    """x + f(LayerNorm(x)) for self-attention, cross-attention (decoder only) and the feed-forward network."""

    def __init__(self, width: int, heads: int, ffn: int, cross: bool):
        super().__init__()
        self.self_norm, self.self_attention = nn.LayerNorm(width), Attention(width, heads)
        if cross:
            self.cross_norm, self.cross_attention = nn.LayerNorm(width), Attention(width, heads)
        self.ffn_norm, self.ffn = nn.LayerNorm(width), FeedForward(width, ffn)

    def forward(self, x, allowed=None, memory=None):
        normed = self.self_norm(x)
        x = x + self.self_attention(normed, normed, allowed)
        if memory is not None:
            x = x + self.cross_attention(self.cross_norm(x), memory)
        return x + self.ffn(self.ffn_norm(x))


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt(head width)) v, with four biased projections."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, query: Float[Tensor, "B Q D"], source: Float[Tensor, "B K D"], allowed=None):
        """allowed is boolean and broadcasts to [B heads Q K]; True lets the query see the key."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B heads tokens head_width]
            for linear, x in ((self.q, query), (self.k, source), (self.v, source))
        )
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if allowed is not None:
            scores = scores.masked_fill(~allowed, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Linear, ReLU, Linear."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        return self.down(F.relu(self.up(x)))


class Affine(nn.Module):
    """A folded BatchNorm: one scale and one bias per channel of an NCHW map."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x * self.scale[:, None, None] + self.bias[:, None, None]


def to_grid(stage: int, inputs: int, outputs: int) -> nn.Module:
    """The convolution that brings stage 0, 1 or 2 (double, same, half side) to the common grid."""
    kind, size = ((nn.Conv2d, 2), (nn.Conv2d, 1), (nn.ConvTranspose2d, 2))[stage]
    return kind(inputs, outputs, size, stride=size, bias=False)


def from_grid(stage: int, inputs: int, outputs: int) -> nn.Module:
    """The convolution that takes the common grid back to the side of stage 0, 1 or 2."""
    kind, size = ((nn.ConvTranspose2d, 2), (nn.ConvTranspose2d, 1), (nn.Conv2d, 2))[stage]
    return kind(inputs, outputs, size, stride=size, bias=False)


def by_view(read: dict[str, Any], count: int, view: int) -> dict[str, Any]:
    """What was read of every `count`-th image, from image `view` on; leaves are tensors or lists of tensors."""
    return {
        name: [part[view::count] for part in leaf] if isinstance(leaf, list) else leaf[view::count]
        for name, leaf in read.items()
    }


def tokens(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N C"]:
    """The positions of a map as a sequence, row by row."""
    return x.flatten(2).transpose(1, 2)


def as_map(x: Float[Tensor, "B N C"], like: Float[Tensor, "B _ h w"]) -> Float[Tensor, "B C h w"]:
    """A sequence as a map of the height and width of `like`."""
    return x.transpose(1, 2).unflatten(2, like.shape[2:])


def causal_mask(x: Float[Tensor, "B S D"]) -> Bool[Tensor, "S S"]:
    """True where a position may look: at itself and at what comes before it."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()


def coordinates(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "1 2 h w"]:
    """Channel 0 runs from -1 to 1 along the width, channel 1 along the height."""
    down, across = (torch.linspace(-1, 1, size, device=x.device, dtype=x.dtype) for size in x.shape[2:])
    return torch.stack(torch.meshgrid(across, down, indexing="xy"))[None]


def sincos_positions(height: int, columns: int, width: int) -> Float[Tensor, "N D"]:
    """Fixed 2-D positions of MAE, row-major: sin and cos of the column, then sin and cos of the row (D/4 each)."""
    omega = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(
        torch.arange(height, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    x, y = (coordinate.flatten()[:, None] * omega for coordinate in (column, row))
    return torch.cat([x.sin(), x.cos(), y.sin(), y.cos()], -1).float()

"""UniCrossAdapter: radiographs to reports through a frozen CLIP, adapters, fusion and a Transformer decoder.

Two conditionings of one set of parameters:

- `published`: the paper's equations. The text that the adapters couple with the images is the report itself, attended
  to in both directions, so each position sees what follows it; to generate, all is computed anew for each prefix.
- `causal`: the images are coupled with a text known before the report (its indication, or a fixed prompt). The report
  then runs through CLIP's text side and the text adapters causally, so the images are read once for a study and
  generation runs on cached keys and values.

`trainable` holds adapters, fusion, vision Transformer and decoder; `frozen` CLIP and the input embedding of the
report's vocabulary. The input of the decoder is the adapted text feature of each token.
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from common.models.attention import KeyValues, Past
from common.models.clip import TEXT_GROUPS, ClipConfig, ModifiedResNet, TextTransformer, normalise
from common.models.decoding import Forward
from common.models.layers import random_params
from common.models.seq2seq import Decoder, causal, memory_keys_values
from common.training.token_loss import TokenLoss, report_loss
from common.types import LossSum, PyTree
from unicross_jax.adapters import RESAMPLINGS, AdapterConfig, Coupled, Stage
from unicross_jax.fusion import Fusion, VisionTransformer

ADAPTERS_BEGIN = 0.01  # times the usual spread of weights

Conditioning = Literal["causal", "published"]


@dataclasses.dataclass(frozen=True)
class UniCrossConfig:
    """Sizes of the model (defaults: IU X-ray), and what an ablation leaves out."""

    clip: ClipConfig = ClipConfig()
    vocabulary: int = 4348  # tokens of the reports
    conditioning: Conditioning = "causal"
    heads: int = 8
    vision_layers: int = 3
    decoder_layers: int = 3
    dropout: float = 0.09
    adapters: AdapterConfig | None = AdapterConfig()  # None: the frozen CLIP as it is
    modulation: bool = True
    multi_scale: bool = True

    @property
    def width(self) -> int:
        """Of vision Transformer and decoder: that of CLIP's text side, whose features the decoder reads."""
        return self.clip.text_width


class Studies(flax.struct.PyTreeNode):
    """The images of B studies in up to V views, grey or in colour, and what is known before the report."""

    images: UInt8[Array, "B V H W *rgb"]
    view_mask: Bool[Array, "B V"]  # false on views that a study lacks
    condition: Int[Array, "B C"]  # CLIP's token ids of a text known before the report, padded
    condition_end: Int[Array, " B"]  # index of its end token


class ReportBatch(flax.struct.PyTreeNode):
    """Studies with their reports. `targets` is the token after each of `tokens`, `weights` is 0 on padding."""

    studies: Studies
    tokens: Int[Array, "B T"]
    targets: Int[Array, "B T"]
    weights: Float[Array, "B T"]

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Tokens that count in the loss."""
        return (self.weights > 0).sum()


class Encoded(flax.struct.PyTreeNode):
    """What the report needs of the images; `attended` has one leaf a stage (none without adapters)."""

    memory: Float[Array, "B M D"]
    memory_mask: Bool[Array, "B M"]
    attended: list[Float[Array, "B V*N A"]]
    attended_mask: Bool[Array, "B V*N"]


class _Read(NamedTuple):
    maps: tuple[Array, ...]
    text: Float[Array, "N T W"]  # after CLIP's last LayerNorm
    global_text: Float[Array, "N E"]
    attended: list[Array]


@dataclasses.dataclass(frozen=True)
class Net:
    """The parts of the model with their parameters: `net.stage(k, "couple", ...)` applies one.

    Where `rng` is given they drop out, each use of a part by a key of its own.
    """

    trainable: PyTree
    frozen: PyTree
    config: UniCrossConfig
    rng: Array | None = None

    def visual(self, method: str, *args: Any) -> Any:
        """A method of CLIP's image side."""
        return ModifiedResNet(self.config.clip).apply({"params": self.frozen["clip"]["visual"]}, *args, method=method)

    def text(self, method: str, *args: Any) -> Any:
        """A method of CLIP's text side."""
        return TextTransformer(self.config.clip).apply({"params": self.frozen["clip"]["text"]}, *args, method=method)

    def stage(self, number: int, method: str, *args: Any) -> Any:
        """A method of an adapter stage, 0 to 2."""
        variables = {"params": self.trainable[f"adapter{number}"]}
        rngs = self._rngs(f"{method}{number}")
        return stage_module(self.config, number).apply(variables, *args, method=method, rngs=rngs)

    def part(self, name: Literal["fusion", "vision", "decoder"], *args: Any) -> Any:
        """One of the parts after CLIP."""
        variables = {"params": self.trainable[name]}
        return part_modules(self.config)[name].apply(variables, *args, rngs=self._rngs(name))

    def _rngs(self, use: str) -> dict[str, Array] | None:
        if self.rng is None:
            return None
        return {"dropout": jax.random.fold_in(self.rng, 1 + _uses(self.config).index(use))}


def _uses(config: UniCrossConfig) -> list[str]:
    """The uses of all parts for whole reports, in their order: it numbers the keys of dropout."""

    def of_stages(method: str) -> list[str]:
        return [f"{method}{number}" for number in range(TEXT_GROUPS if config.adapters is not None else 0)]

    apart = [*of_stages("visual_keys_values"), *of_stages("text_alone")] if config.conditioning == "causal" else []
    return [*of_stages("couple"), "fusion", "vision", *apart, "decoder"]


class DecoderInputs(NamedTuple):
    """What the decoder reads for whole reports, in the order of its arguments."""

    text: Float[Array, "B T D"]
    memory: Array | KeyValues
    mask: Bool[Array, "B T T"]
    memory_mask: Bool[Array, "B 1 M"]


def loss(
    trainable: PyTree,
    frozen: PyTree,
    batch: ReportBatch,
    rng: Array,
    *,
    config: UniCrossConfig,
    chunk: int = 128,
    loss: TokenLoss | None = None,
) -> tuple[LossSum, dict[str, LossSum]]:
    """Cross-entropy of the report's tokens (Eq. 7), or `loss` of them, as a `common.training.step.LossFn`."""
    hidden = report_hidden(trainable, frozen, batch.studies, batch.tokens, batch.weights > 0, config, rng)
    head = output_head(trainable)
    return report_loss(hidden, head, batch.targets, batch.weights, chunk=chunk, head_trained=True, loss=loss)


def report_hidden(
    trainable: PyTree,
    frozen: PyTree,
    studies: Studies,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    config: UniCrossConfig,
    rng: Array | None = None,
) -> Float[Array, "B T D"]:
    """Hidden states of whole reports, a constant 1 last, for `output_head`; dropout where `rng` is given.

    `mask` is true on tokens.
    """
    net = Net(trainable, frozen, config, rng)
    return with_one(net.part("decoder", *decoder_inputs(net, studies, tokens, mask))[0])


def decoder_inputs(net: Net, studies: Studies, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]) -> DecoderInputs:
    """What the decoder reads for whole reports, `mask` true on tokens."""
    if net.config.conditioning == "published":
        return _published(net, studies, tokens, mask)
    images = report_context(net, encode_studies(net, studies))
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    segments = mask.astype(jnp.int32)
    visible = _visible(segments)
    text, _ = _read_text(net, images, tokens, positions, segments, visible, None)
    return DecoderInputs(text, images.memory, visible, images.memory_mask[:, 0])


def stage_module(config: UniCrossConfig, number: int) -> Stage:
    """Adapter stage 0, 1 or 2."""
    assert config.adapters is not None
    channels = config.clip.vision_width * 8 * 2**number
    return Stage(config.adapters, channels, config.clip.text_width, RESAMPLINGS[number])


def part_modules(config: UniCrossConfig) -> dict[str, nn.Module]:
    """What follows CLIP."""
    return {
        "fusion": Fusion(config.width, config.heads, config.modulation, config.multi_scale),
        "vision": VisionTransformer(config.vision_layers, config.heads, config.dropout),
        "decoder": Decoder(config.decoder_layers, config.heads, config.dropout),
    }


def read_images(
    net: Net,
    images: UInt8[Array, "N height width *rgb"],
    text: Float[Array, "N T W"],
    end: Int[Array, " N"],
    text_mask: Bool[Array, "#N #T T"],
    text_keys: Bool[Array, "N 1 T"],
) -> _Read:
    """CLIP's two sides with the adapters between their blocks. `text` is embedded; `end` is where its feature is."""
    visual = net.visual("stage", 1, net.visual("stem", normalise(images)))
    before: Coupled | None = None
    maps, attended = [], []
    for stage in range(TEXT_GROUPS):
        visual, text = net.visual("stage", stage + 2, visual), net.text("group", stage, text)
        if net.config.adapters is not None:
            before = net.stage(stage, "couple", visual, text, before, text_mask, text_keys)
            visual, text = before.visual, before.text
            attended.append(before.attended_visual)
        maps.append(visual)
    maps[-1] = net.visual("dense_pool", visual)
    text = net.text("finish", text)
    return _Read(tuple(maps), text, net.text("pooled", text, end), attended)


def encode_studies(net: Net, studies: Studies) -> Encoded:
    """The image side under `causal`, once for a study: each view coupled with the text known before the report."""
    views = studies.images.shape[1]
    flat = np.repeat(np.arange(studies.images.shape[0]), views)  # the study of each image
    text = net.text("embed", studies.condition)[flat]
    end = studies.condition_end[flat]
    known = jnp.arange(text.shape[1]) <= end[:, None]
    read = read_images(net, _flat(studies.images), text, end, causal(text.shape[1]), known[:, None])
    memory, memory_mask = _memory(net, studies, read)
    attended = [leaf.reshape(studies.images.shape[0], -1, leaf.shape[-1]) for leaf in read.attended]
    positions = read.attended[0].shape[1] if read.attended else 1
    return Encoded(memory, memory_mask, attended, jnp.repeat(studies.view_mask, positions, axis=1))


class ReportContext(NamedTuple):
    """What the report attends to of the images, for every layer, as `common.models.attention.Past.context` has it."""

    memory: KeyValues  # [L B M H dim]
    memory_mask: Bool[Array, "B 1 1 M"]
    attended: list[KeyValues]  # of each stage [B V*N H dim]
    attended_mask: Bool[Array, "B 1 1 V*N"]


def report_context(net: Net, encoded: Encoded) -> ReportContext:
    """What `bind_report` takes of the images."""
    return ReportContext(
        _memory_keys_values(net, encoded),
        encoded.memory_mask[:, None, None],
        [net.stage(k, "visual_keys_values", leaf) for k, leaf in enumerate(encoded.attended)],
        encoded.attended_mask[:, None, None],
    )


def bind_report(net: Net, context: ReportContext | None = None) -> Forward:
    """The report side under `causal`: of the images given, or of those that each `Past` has with it."""

    def forward(tokens, positions, segments=None, past=None):
        images: Any = context if past is None or past.context is None else past.context
        mask = None if segments is None else _visible(segments)
        x, cache = _read_text(net, images, tokens, positions, segments, mask, past)
        x, own = net.part("decoder", x, images.memory, mask, images.memory_mask[:, 0], _past_of(past, "decoder"))
        return with_one(x), {**cache, "decoder": own}

    return forward


def _read_text(net: Net, images: ReportContext, tokens, positions, segments, mask, past):
    """CLIP's text side with the adapters: the features of tokens, and their keys and values."""
    x = net.frozen["report_embedding"][tokens]
    x += net.frozen["clip"]["text"]["positional_embedding"][positions]
    of_clip, of_adapters = [], []
    reduced = None
    for stage in range(TEXT_GROUPS):
        x, own = net.text("extend", stage, x, segments, _past_of(past, "clip", stage))
        of_clip.append(own)
        if images.attended:
            seen = images.attended[stage], images.attended_mask[:, 0]
            x, reduced, own = net.stage(stage, "text_alone", x, reduced, *seen, mask, _past_of(past, "adapters", stage))
            of_adapters.append(own)
    return net.text("finish", x), {"clip": of_clip, "adapters": of_adapters}


def _past_of(past: Past | None, *path: str | int) -> Past | None:
    """The past of one part of the model."""
    if past is None:
        return None
    prompt, suffix = past.prompt, past.suffix
    for key in path:
        prompt, suffix = prompt[key], suffix[key]
    return past._replace(prompt=prompt, suffix=suffix, context=None)


def _visible(segments: Int[Array, "B T"]) -> Bool[Array, "B T T"]:
    """Where a token may look: at itself and at what comes before it in its segment."""
    return causal(segments.shape[1]) & (segments[:, None, :] == segments[:, :, None])


def _memory_keys_values(net: Net, encoded: Encoded) -> KeyValues:
    return memory_keys_values(net.trainable["decoder"], encoded.memory, net.config.heads)


def _published(net: Net, studies: Studies, tokens: Array, mask: Array) -> DecoderInputs:
    """The equations as printed: report and images see each other whole; the views' text features are summed."""
    batch, views = studies.images.shape[:2]
    flat = np.repeat(np.arange(batch), views)  # the study of each image
    embedded = net.frozen["report_embedding"][tokens]
    embedded += net.frozen["clip"]["text"]["positional_embedding"][: tokens.shape[1]]
    end = jnp.where(mask, tokens, -1).argmax(-1)  # CLIP's rule, applied to ids of the report's vocabulary
    keys = mask[flat][:, None]
    read = read_images(net, _flat(studies.images), embedded[flat], end[flat], keys, keys)
    text = read.text.reshape(batch, views, *read.text.shape[1:])
    text = (text * studies.view_mask[..., None, None]).sum(1)
    memory, memory_mask = _memory(net, studies, read)
    return DecoderInputs(text, memory, causal(tokens.shape[1]) & mask[:, None], memory_mask[:, None])


def _memory(net: Net, studies: Studies, read: _Read) -> tuple[Array, Array]:
    fused = net.part("fusion", read.maps, read.global_text)
    return net.part("vision", fused.reshape(*studies.view_mask.shape, *fused.shape[1:]), studies.view_mask)


def _flat(images: UInt8[Array, "B V H W *rgb"]) -> UInt8[Array, "B*V H W *rgb"]:
    return images.reshape(-1, *images.shape[2:])


def with_one(hidden: Float[Array, "B T D"]) -> Float[Array, "B T D+1"]:
    """Hidden states with a constant 1, which `output_head` multiplies with the bias."""
    return jnp.concatenate([hidden, jnp.ones((*hidden.shape[:-1], 1), hidden.dtype)], axis=-1)


def output_head(trainable: PyTree) -> Float[Array, "V D"]:
    """The matrix that turns hidden states into logits, its last column the bias."""
    logits = trainable["logits"]
    return jnp.concatenate([logits["kernel"], logits["bias"][:, None]], axis=-1)


def init_trainable(config: UniCrossConfig, key: Array) -> PyTree:
    """Random adapters, fusion, vision Transformer and decoder (see `random_params`).

    What adapters add to CLIP's features begins small, so that training starts from CLIP (arXiv:1902.00751, 2.1).
    """
    tree = random_params(jax.eval_shape(functools.partial(_init_parts, config), key), key, by_fan_in=True)
    for number in range(TEXT_GROUPS if config.adapters is not None else 0):
        for name in ("recover_visual", "recover_text"):
            tree[f"adapter{number}"][name]["kernel"] *= ADAPTERS_BEGIN
    return tree


def _init_parts(config: UniCrossConfig, key: Array) -> PyTree:
    clip, grid, width = config.clip, config.clip.image_size // 16, config.width
    text, yes = jnp.zeros((1, 2, clip.text_width)), jnp.ones((1, 1, 2), bool)
    tree: PyTree = {"logits": {"kernel": jnp.zeros((config.vocabulary, width)), "bias": jnp.zeros(config.vocabulary)}}
    before = None
    maps = [
        jnp.zeros((1, side, side, clip.vision_width * 8 * 2**number))
        for number, side in enumerate((2 * grid, grid, grid // 2))
    ]
    for number in range(TEXT_GROUPS if config.adapters is not None else 0):
        args = maps[number], text, before, yes, yes
        before, variables = stage_module(config, number).init_with_output(key, *args, method="couple")
        tree[f"adapter{number}"] = variables["params"]
    maps[-1] = jnp.zeros((1, grid // 2, grid // 2, clip.embed_dim))
    inputs: dict[str, tuple[Any, ...]] = {
        "fusion": (tuple(maps), jnp.zeros((1, clip.embed_dim))),
        "vision": (jnp.zeros((1, 1, grid, grid, width)), jnp.ones((1, 1), bool)),
        "decoder": (jnp.zeros((1, 2, width)), jnp.zeros((1, 2, width)), causal(2)),
    }
    for name, module in part_modules(config).items():
        tree[name] = module.init(key, *inputs[name])["params"]
    return tree

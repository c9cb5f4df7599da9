"""Make the small shipped Qwen2.5-VL, the base of the preset `demo`: `python -m deer_jax.make_assets`.

About two million parameters and a byte-level tokenizer of its own, trained from scratch on phantom studies to tell the
next word of the report and, from the mean of the image's features, which labels are positive; the second is what makes
a tower as small as this one look at the image within minutes. It plays the part that Qwen2.5-VL-3B has in the paper.
"""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from common.bounds import COUNT, STEPS, bounded
from common.command import run_cli
from common.data.huggingface_tokenizer import QWEN2_SPECIAL
from common.data.images import GreyImage, augment, resize_shorter
from common.data.packing import GlobalBatch, plan_epochs, plan_in_order
from common.data.pieces import CHAT_MARKS
from common.data.pipeline import make_iterator
from common.data.tokenizers import load_tokenizer
from common.errors import Parser
from common.io.locks import owning
from common.io.safetensors import write_json
from common.io.text import read_json_object
from common.metrics.clinical import FINDINGS, POSITIVE
from common.models.lora import LoraConfig
from common.models.qwen2 import Qwen2Config
from common.models.qwen2_vl import Qwen2VLConfig, init_params
from common.models.qwen2_vl_layout import vision_layout
from common.models.qwen2_vl_vision import VisionConfig
from common.models.qwen2_vl_weights import save_qwen2_vl
from common.phantoms.phantom import Phantom, make_phantoms
from common.training.evaluation import Check, Evaluation
from common.training.optim import OptimConfig
from common.training.parallel import compile_evaluation, device_put_tree, make_device_layout, place_batch
from common.training.run import train_from_scratch
from common.types import LossSum, PyTree, TrainState
from deer_jax.config import EMBEDDED_BASE, INSTRUCTION
from deer_jax.prompts import Encoder, ReportRows, prompt_length, report_rows
from deer_jax.vision_policy import image_features, sft_loss

SEED = 21  # of the phantoms; the demo's have others
SIDE, DRAWN, LENGTH = 112, 120, 64  # pixels that are seen, and drawn; tokens of a report
VOCABULARY = 480
HELD_OUT = 200
OPTIM = OptimConfig(learning_rate=1.5e-3, warmup_ratio=0.05, weight_decay=0.05, b2=0.98)
LABEL_WEIGHT = 1.0
WIDTH = 128


class LabelledRows(flax.struct.PyTreeNode):
    """Prompts with reports, and which of the 14 labels each study has."""

    reports: ReportRows
    labels: Float[Array, "B 14"]

    @property
    def real_tokens(self) -> Int[Array, ""]:
        """Tokens of the rows."""
        return self.reports.real_tokens


def sizes(vocabulary: int, ids: dict[str, int]) -> Qwen2VLConfig:
    """The small model over a tokenizer of `vocabulary` tokens; `ids` are those of Qwen2's special tokens."""
    language = Qwen2Config(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, rope_theta=10_000.0, tie_word_embeddings=True, mrope_section=(4, 6, 6),
    )  # fmt: skip
    vision = VisionConfig(
        depth=4, hidden_size=WIDTH, intermediate_size=256, num_heads=4, out_hidden_size=WIDTH,
        fullatt_block_indexes=(1, 3),
    )  # fmt: skip
    marks = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
    names = ("vision_start", "vision_end", "vision_pad", "image", "video")
    special = {f"{name}_token_id": ids[f"<|{mark}|>"] for name, mark in zip(names, marks, strict=True)}
    return Qwen2VLConfig(language, vision, **special)


def train_tokenizer(directory: Path, texts: list[str]) -> None:
    """Write `tokenizer.json`: byte-level BPE as Qwen2's, with its special tokens, over the phantoms' words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", *QWEN2_SPECIAL]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=CHAT_MARKS[1],
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
    )
    whole.save_pretrained(str(directory))


def labelled_rows(batch: GlobalBatch, labels: Float[np.ndarray, "N 14"], images: Any, **options: Any) -> LabelledRows:
    """Arrays of planned rows; `images` makes the view of a study from the batch and its number."""
    seen: Any = _Views({row[0]: (images(batch, row[0]),) for row in batch.rows if row})
    own: Any = np.stack([labels[row[0]] if row else np.zeros(len(FINDINGS)) for row in batch.rows]).astype(np.float32)
    return LabelledRows(report_rows(batch, images=seen, **options), own)


class _Views(dict[int, tuple[GreyImage, ...]]):
    """Views by study; an empty row has those of any."""

    def __missing__(self, study: int) -> tuple[GreyImage, ...]:
        return next(iter(self.values()))


def base_loss(
    trainable: PyTree, frozen: PyTree, batch: LabelledRows, rng: Array, *, config: Qwen2VLConfig, **options: Any
) -> tuple[LossSum, dict[str, LossSum]]:
    """Cross-entropy of the reports' tokens, and of the labels from the mean of the image's features."""
    model = {part: trainable[part] for part in ("visual", "language")}
    words, _ = sft_loss(model, frozen, batch.reports, rng, config=config, **options)
    features = image_features(config, model, batch.reports.prompts, options["layout"])
    logits = features.mean((1, 2)) @ trainable["probe"]["kernel"] + trainable["probe"]["bias"]
    each = optax.sigmoid_binary_cross_entropy(logits, batch.labels)
    labels = LossSum(each.sum(), jnp.float32(each.size))
    per_word = LABEL_WEIGHT * words.weight / labels.weight
    parts = {"next_word": words, "labels": labels}
    return LossSum(words.total + per_word * labels.total, words.weight), parts


@owning("work")
def make(directory: Path, work: Path, studies: int, steps: int, rows: int) -> None:
    """Train in `work`, a run directory that can be continued, and write the finished model to `directory`."""
    drawn = make_phantoms(SEED, range(studies + HELD_OUT), DRAWN)
    held_out, phantoms = drawn[:HELD_OUT], drawn[HELD_OUT:]
    if not (work / "tokenizer" / "tokenizer.json").exists():
        train_tokenizer(work / "tokenizer", [INSTRUCTION, *(phantom.report for phantom in phantoms)])
    tokenizer = load_tokenizer(work / "tokenizer")
    config = sizes(tokenizer.vocab_size, {mark: tokenizer.encode(mark)[0] for mark in QWEN2_SPECIAL})
    encoder = Encoder(config, tokenizer, SIDE, INSTRUCTION)
    length = prompt_length(encoder, 1) + LENGTH

    def to_arrays(phantoms: list[Phantom], view: Callable[[GreyImage, int, int], GreyImage]) -> Callable:
        return functools.partial(
            labelled_rows,
            labels=np.array([np.equal(phantom.labels, POSITIVE) for phantom in phantoms]),
            images=lambda batch, study: view(phantoms[study].frontal, batch.epoch, study),
            reports=[[*tokenizer.encode(phantom.report), tokenizer.eos_id][:LENGTH] for phantom in phantoms],
            encoder=encoder,
            views=1,
            length=length,
        )

    def random_view(image: GreyImage, *key: int) -> UInt8[np.ndarray, "side side"]:
        return augment(image, np.random.default_rng([SEED, *key]), resize=DRAWN, crop=SIDE, brightness=0.2)

    layout = make_device_layout("jit")
    loss = functools.partial(
        base_loss, config=config, layout=vision_layout(config.vision, encoder.grid), lora=LoraConfig(), chunk=length
    )
    plan = plan_epochs(
        [1] * len(phantoms), batch_rows=rows, epochs=-(-steps * rows // len(phantoms)), max_length=1, packing=False,
        seed=SEED,
    )  # fmt: skip
    rng = device_put_tree(jax.random.key(SEED), layout)
    evaluate = compile_evaluation(lambda *args: loss(*args)[1], layout)
    still = to_arrays(held_out, lambda image, *key: resize_shorter(image, SIDE))
    unseen = functools.partial(make_iterator, plan_in_order([1] * HELD_OUT, batch_rows=50, buckets=(1,)), still)

    def measure(state: TrainState, check: Check) -> dict[str, float]:
        parts = []
        for batch in unseen():
            check()
            parts.append(evaluate(state.trainable, {}, place_batch(batch, layout), rng))
        mean = {
            name: sum(part[name].total for part in parts) / sum(part[name].weight for part in parts)
            for name in parts[0]
        }
        return {f"val/{name}": float(mean[name]) for name in mean}

    first = init_params(config, jax.random.key(SEED))
    first["probe"] = {"kernel": jnp.zeros((WIDTH, len(FINDINGS))), "bias": jnp.zeros(len(FINDINGS))}
    weights = train_from_scratch(
        OPTIM,
        SEED,
        work,
        loss,
        first,
        plan=plan,
        to_batch=to_arrays(phantoms, random_view),
        validation=unseen,
        max_steps=steps,
        evaluations=[Evaluation(100, measure, ("val/next_word", "val/labels"))],
        true_share=config.vision.full_attention_share,
    )
    whole = {part: weights[part] for part in ("visual", "language")}
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), whole)
    if directory.exists():
        shutil.rmtree(directory)
    save_qwen2_vl(directory, config, half)
    ends = {"bos_token_id": tokenizer.encode("<|endoftext|>")[0], "eos_token_id": tokenizer.eos_id}
    write_json(directory / "config.json", read_json_object(directory / "config.json") | ends)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(work / "tokenizer" / name, directory)


def main(arguments: list[str]) -> None:
    """Command line of `python -m deer_jax.make_assets`."""
    parser = Parser("python -m deer_jax.make_assets", description=__doc__)
    parser.add_argument("--output", type=Path, default=EMBEDDED_BASE, help="directory of the finished model")
    parser.add_argument("--work", type=Path, default=Path("runs/deer-base"), help="run directory; can be continued")
    parser.add_argument("--studies", type=bounded(COUNT), default=5_000, help="phantom studies to learn from")
    parser.add_argument("--steps", type=bounded(STEPS), default=3_000, help="updates")
    parser.add_argument("--rows", type=bounded(COUNT), default=32, help="studies of an update")
    options = parser.parse_args(arguments)
    make(options.output, options.work, options.studies, options.steps, options.rows)


if __name__ == "__main__":
    run_cli(main)

"""Make the small base model that the demo adapts: `make assets`.

A SentencePiece tokenizer and a Qwen2 of about two million parameters, trained from scratch on text of the project's
own generator (`retsta_jax.corpus.pairs.pretraining_text`): reports, standard phrases, glossaries and simple
instructions in both languages, but never a report with its standard form. It plays the part that Qwen2.5-7B-Instruct
has in the paper.
"""

import functools
import io
import multiprocessing
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import sentencepiece

from common.bounds import COUNT, STEPS, bounded
from common.command import run_cli
from common.data.encode import encode_examples
from common.data.packing import plan_epochs
from common.data.pieces import CHAT_MARKS
from common.data.pipeline import evaluation_batches, text_batches
from common.data.records import Quarantine
from common.data.tokenizers import Tokenizer, load_tokenizer
from common.errors import Parser
from common.io.locks import owning
from common.models.lora import LoraConfig
from common.models.qwen2 import Qwen2Config, init_params
from common.models.qwen2_weights import save_qwen2
from common.training.optim import OptimConfig
from common.training.run import train_from_scratch
from common.training.sft import sft_loss
from retsta_jax.config import EMBEDDED_BASE
from retsta_jax.corpus.pairs import make_splits, pretraining_text

VOCABULARY = 4096
LENGTH = 256
SIZES = Qwen2Config(
    vocab_size=VOCABULARY,
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    rope_theta=10_000.0,
    tie_word_embeddings=True,
)
SEED = 7
OPTIM = OptimConfig(learning_rate=2e-3, warmup_ratio=0.05, weight_decay=0.05, b2=0.95)


def train_tokenizer(directory: Path, texts: list[str]) -> None:
    """Write `tokenizer.model`: byte fallback for what it has not seen, text kept exactly, ChatML marks as control."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=VOCABULARY,
        model_type="bpe",
        character_coverage=0.9999,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        control_symbols=list(CHAT_MARKS),
        user_defined_symbols=["\n"],
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=2,
        minloglevel=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())


def encode_text(tokenizer: Tokenizer, text: str) -> tuple[list[int], list[int]]:
    """(prompt, answer): an instruction and its answer as a turn of a chat, any other text as one to learn whole."""
    instruction, arrow, answer = text.rpartition(" -> ")
    if arrow:
        prompt = tokenizer.chat([{"role": "user", "content": instruction}])
        return prompt, [*tokenizer.encode(answer), tokenizer.eos_id]
    return [tokenizer.eos_id], [*tokenizer.encode(text), tokenizer.eos_id]


@owning("work")
def make(directory: Path, work: Path, steps: int, batch_size: int) -> None:
    """Train in `work`, a run directory that can be continued, and write the finished model to `directory`."""
    # A few more texts than the steps can use: a text has about 33 tokens.
    count = steps * batch_size * LENGTH // 30
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        texts = list(pool.map(functools.partial(pretraining_text, SEED), range(count), chunksize=1000))
    reports = make_splits(10_000, 0, 0, seed=SEED, language="both", held_out="styles")["train"]
    if not (work / "tokenizer.model").exists():
        train_tokenizer(work, [*texts[:20_000], *[pair.source for pair in reports], *[pair.target for pair in reports]])
    tokenizer = load_tokenizer(work / "tokenizer.model")
    encoded = ((str(index), *encode_text(tokenizer, text)) for index, text in enumerate(texts))
    examples = encode_examples(encoded, LENGTH, Quarantine())
    held_out, examples = examples[:200], examples[200:]
    plan = plan_epochs(
        [len(example.tokens) for example in examples],
        batch_rows=batch_size, epochs=1, max_length=LENGTH, packing=True, buckets=(LENGTH,), seed=SEED,
    )  # fmt: skip
    loss = functools.partial(sft_loss, config=SIZES, lora=LoraConfig(dropout=0.0), chunk=LENGTH)
    weights = train_from_scratch(
        OPTIM,
        SEED,
        work,
        loss,
        init_params(SIZES, jax.random.key(SEED)),
        plan=plan,
        to_batch=text_batches(examples, tokenizer.pad_id),
        validation=functools.partial(
            evaluation_batches, held_out, tokenizer.pad_id, batch_rows=8, buckets=(128, LENGTH)
        ),
        max_steps=steps,
    )
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), weights)
    if directory.exists():
        shutil.rmtree(directory)
    save_qwen2(directory, SIZES, half)
    shutil.copy(work / "tokenizer.model", directory)


def main(arguments: list[str]) -> None:
    """Command line of `python -m retsta_jax.make_assets`."""
    parser = Parser("python -m retsta_jax.make_assets", description=__doc__)
    parser.add_argument("--output", type=Path, default=EMBEDDED_BASE, help="directory of the finished model")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/assets"), help="run directory; continues if interrupted"
    )
    parser.add_argument("--steps", type=bounded(STEPS), default=2500, help="updates of batch-size rows of 256 tokens")
    parser.add_argument("--batch-size", type=bounded(COUNT), default=8)
    options = parser.parse_args(arguments)
    make(options.output, options.work, options.steps, options.batch_size)


if __name__ == "__main__":
    run_cli(main)

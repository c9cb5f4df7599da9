"""Configuration of RetSTA training, and the presets: the demo, real chest X-ray reports, the paper's two models.

The paper gives batch 2, accumulation 8, AdamW, warm-up ratio 0.03, learning rate 3e-5, one epoch for RetSTA-7B-Zero and
three for RetSTA-7B. LoRA rank, alpha and targets, the schedule and the prompt are not published; the defaults here
are our choices.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from common.bounds import Count, CountOrNone, Few, Phantoms, Probability, Steps, StepsOrAll
from common.config import Incidental, MovablePath
from common.errors import UserError
from common.models.attention_choice import Implementation
from common.models.lora import LoraConfig
from common.models.qwen2 import Remat
from common.options import Needs
from common.training.config import METRICS_NEEDS, ReportTrainingConfig
from common.training.optim import OptimConfig
from common.training.parallel import MESH_NEEDS, MeshConfig

ASSETS = Path(__file__).parent / "assets"
EMBEDDED_BASE = ASSETS / "base"
EMBEDDED_ADAPTER = ASSETS / "adapter"  # of that base, trained to standardize


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which report pairs to learn from."""

    corpus: Literal["fundus", "openi", "jsonl"] = (
        "fundus"  # generated; the Open-i archive; your own rows, JSONL or Parquet
    )
    language: Literal["zh", "en", "both"] = "both"  # of generated reports
    train_size: Phantoms = 4000  # generated pairs
    validation_size: Phantoms = 100  # generated pairs, or Open-i reports set aside from the training split
    test_size: Incidental[Phantoms] = 200  # generated pairs
    held_out: Literal["states", "styles"] = "states"  # generated evaluation splits: new states, or new styles as well
    archive: MovablePath = ""  # Open-i: NLMCXR_reports.tgz, as published
    test_ids: MovablePath = ""  # Open-i: openi-testset.txt, the ids of the test split
    train: MovablePath = ""  # jsonl: rows {"id", "source", "target", "language"?}
    validation: MovablePath = ""  # jsonl
    test: MovablePath = ""  # jsonl
    columns: tuple[str, ...] = ()  # jsonl: columns under other names, such as source=report
    targets: Literal["reports", "codes"] = "reports"  # jsonl: reports in words, or lists of codes, one per line
    terminology: MovablePath = ""  # jsonl: table of terms for scores and augmentation (CSV, TSV, JSON); "": shipped
    augment_to: CountOrNone = 0  # number of training pairs including augmented ones; 0: no augmentation


def scored_as(data: DataConfig) -> Literal["fundus", "openi", "jsonl"]:
    """The corpus by whose form targets are read: lists of codes are those of Open-i wherever they come from."""
    return "openi" if data.corpus == "jsonl" and data.targets == "codes" else data.corpus


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Shares of the augmented pairs that get each kind of change; every such pair gets at least one.

    typo, punctuation, split and merge are syntactic noise, negation and probability semantic perturbation. The paper
    (RetSTA, section 2.2) gives no rates.
    """

    typo: Probability = 0.5  # confused characters, typing and text recognition errors
    punctuation: Probability = 0.3  # commas, colons and stops left out
    split: Probability = 0.15  # a comma becomes a stop
    merge: Probability = 0.15  # a stop becomes a comma
    negation: Probability = 0.25  # a finding denied, a denial removed, a denial added; the target changes with it
    probability: Probability = 0.25  # a finding doubted, a doubt removed; the target changes with it
    synonym: Probability = 0.6  # another name or abbreviation of the same term
    most_edits: Few = 3  # of one kind in a pair; semantic perturbations: one of each kind


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model and how to compute with it."""

    base: MovablePath = "embedded"  # directory of Qwen2, Llama 3, Yi, GLM-4 or Baichuan2; "embedded": small, shipped
    tuning: Literal["lora", "full"] = "lora"  # what is trained: adapters on the frozen base, or the base itself
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation
    # Of a frozen base; in int8 and nf4 its layers have 8 or 4 bits, the rest is bfloat16. Trained ones are float32.
    param_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "bfloat16"
    attention: Incidental[Implementation] = "auto"
    remat: Incidental[Remat] = (
        "full"  # what the backward pass recomputes: nothing, all but large products, or each layer
    )
    loss_chunk: Count = 128  # positions of each row whose logits exist at one time


@dataclasses.dataclass(frozen=True)
class RetstaConfig(ReportTrainingConfig):
    """The config of a training run."""

    instruction: str = (
        "Rewrite the fundus report in standard form and standard terms, in its own language.\n"
        "请用报告原来的语言,将眼底报告改写为使用标准术语的标准报告。"
    )
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    epochs: Steps = 1
    max_steps: StepsOrAll = 0  # end after this many updates; 0: after all epochs
    batch_size: Count = 16  # rows per update, over all devices
    micro_batch: Count = 2  # rows that one device processes at a time; the rest is accumulation
    max_length: Count = 2048  # tokens per row; longer examples are left out and counted
    packing: bool = False  # several examples per row; otherwise one, padded to the next of `buckets`
    buckets: tuple[Count, ...] = (256, 512, 1024, 2048)
    max_new_tokens: Incidental[Count] = 512  # of a standard report


RETSTA_7B_ZERO = RetstaConfig(
    data=DataConfig(corpus="jsonl"), model=ModelConfig(base="", loss_chunk=512), mesh=MeshConfig(1, -1, 1)
)

SMALL_MODEL = ModelConfig(dtype="float32", param_dtype="float32", remat="dots", loss_chunk=256)
SMALL = RetstaConfig(
    instruction="Standardize / 标准化",
    model=SMALL_MODEL,
    lora=LoraConfig(rank=16, alpha=32.0, dropout=0.0),
    optim=OptimConfig(learning_rate=3e-3),
    epochs=2,
    batch_size=8,
    micro_batch=8,
    max_length=256,
    packing=True,
    buckets=(64, 128, 256),
    max_new_tokens=128,
)

# Above each preset: its command, the hardware it is meant for, and the scores to expect (docs/results.md).
PRESETS: dict[str, RetstaConfig] = {
    # retsta train --preset demo --run-dir runs/demo
    # 2 CPU cores, 1 to 2 minutes. Findings F1 0.36 on 200 test reports; nearest training report 0.15.
    "demo": dataclasses.replace(SMALL, optim=OptimConfig(learning_rate=5e-3), epochs=1),
    # retsta train --preset small --run-dir runs/small
    # 2 CPU cores, 2 to 3 minutes. Findings F1 0.42 on 200 test reports; nearest training report 0.15.
    "small": SMALL,
    # retsta train --preset openi --data.archive NLMCXR_reports.tgz --data.test-ids openi-testset.txt --run-dir DIR
    # 2 CPU cores, 70 minutes. Codes F1 0.37, heads F1 0.56 on 767 test reports; nearest training report 0.34, 0.52.
    "openi": RetstaConfig(
        instruction="Codes",
        data=DataConfig(corpus="openi", validation_size=200),
        model=SMALL_MODEL,
        lora=LoraConfig(rank=32, alpha=64.0, dropout=0.0),
        optim=OptimConfig(learning_rate=3e-3, weight_decay=0.01),
        epochs=8,
        checkpoint_every=50,
        evaluate_every=93,  # an epoch
        batch_size=32,
        micro_batch=32,
        max_length=768,
        buckets=(128, 192, 256, 384, 768),
        max_new_tokens=192,
    ),
    # retsta train --preset retsta-7b-zero --model.base Qwen2.5-7B-Instruct --data.train ... --run-dir runs/zero
    # Eight devices of 16 GB or more; not run yet. The paper (Table 2): BLEU-4 87.89 in Chinese.
    "retsta-7b-zero": RETSTA_7B_ZERO,
    # retsta train --preset retsta-7b --model.base Qwen2.5-7B-Instruct --data.train ... --run-dir runs/retsta-7b
    # The same hardware; not run yet. The paper (Tables 1 and 2): BLEU-4 89.83 in Chinese, 89.66 in English.
    "retsta-7b": dataclasses.replace(RETSTA_7B_ZERO, epochs=3),
}

FILES: dict[str, tuple[str, ...]] = {
    "fundus": (),
    "openi": ("archive", "test_ids"),
    "jsonl": ("train", "validation", "test"),
}  # that each corpus reads, and cannot do without
GIVE = {
    "openi": "corpus openi needs --data.archive NLMCXR_reports.tgz and --data.test-ids openi-testset.txt",
    "jsonl": 'corpus jsonl needs files of rows {"id", "source", "target"} as --data.train, --data.validation and '
    "--data.test",
}


def check_files(data: DataConfig) -> None:
    """Raise UserError where a file that the corpus needs is not named."""
    for name in FILES[data.corpus]:
        if not getattr(data, name):
            raise UserError(f"data.{name}: not given; {GIVE[data.corpus]}")


def check_base(model: ModelConfig) -> None:
    """Raise UserError where no base model is named."""
    if not model.base:
        raise UserError("model.base: not given; name the directory of Qwen2.5-7B-Instruct with --model.base DIR")


def check_given(config: RetstaConfig) -> None:
    """Raise UserError where data or a base model is not named."""
    check_files(config.data)
    check_base(config.model)


NEEDS = (
    *(Needs(f"data.{file}", "data.corpus", (corpus,)) for corpus, files in FILES.items() for file in files),
    *(
        Needs(f"data.{name}", "data.corpus", ("fundus",))
        for name in ("language", "train_size", "test_size", "held_out")
    ),
    Needs("data.targets", "data.corpus", ("jsonl",)),
    Needs("data.terminology", "data.corpus", ("jsonl",)),
    Needs("data.validation_size", "data.corpus", ("fundus", "openi")),
    Needs("augment", "data.augment_to", lambda pairs: pairs > 0, "--data.augment-to PAIRS"),
    Needs("lora", "model.tuning", ("lora",)),
    Needs("model.param_dtype", "model.tuning", ("lora",)),
    MESH_NEEDS,
    *METRICS_NEEDS,
)

HELP = """Data by --data.corpus; every file that is named here must be given:
  fundus  generated; no file                                                              (preset demo)
  openi   --data.archive NLMCXR_reports.tgz --data.test-ids openi-testset.txt             (preset openi)
  jsonl   --data.train FILE --data.validation FILE --data.test FILE                       (retsta-7b-zero, retsta-7b)
          rows {"id", "source", "target"}, and "language" (en or zh) where it is not to be told by the characters;
          with --data.targets codes a target is a list of codes, one per line, and is scored as one
The presets retsta-7b-zero and retsta-7b also need --model.base DIR, such as that of Qwen2.5-7B-Instruct.
"""

"""Configuration of DEER's two training stages, and their presets.

The paper gives Qwen2.5-VL-3B; SFT with the language model frozen, learning rate 1e-5, batch 64; RL on all parameters,
learning rate 1e-6, batch 64, 8 rollouts; gamma 0, then 0.25; alpha 4, beta 1. It does not give prompt, resolution,
epochs, temperature, clip range, KL or lengths; docs/explanation/deer.md says what is chosen here and why.
"""

import dataclasses
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from common.bounds import (
    Count,
    CountOrNone,
    Finite,
    NotNegative,
    Probability,
    Seed,
    Share,
    Side,
    Steps,
    StepsOrAll,
    Within,
)
from common.config import Incidental, MovablePath
from common.data.source import HELP as DATA_HELP
from common.data.source import STUDY_NEEDS, StudySource, check_source
from common.errors import UserError
from common.models.attention_choice import Implementation
from common.models.lora import LoraConfig
from common.models.qwen2 import Remat
from common.options import Needs
from common.training.config import METRICS_NEEDS, ReportTrainingConfig
from common.training.optim import OptimConfig
from common.training.parallel import MESH_NEEDS, MeshConfig, Mode
from deer_jax.objective import Objective

EMBEDDED_BASE = Path(__file__).parent / "assets" / "base"
INSTRUCTION = "Write the findings section of the radiology report for this study."

Group = Annotated[int, Within(1, 4096)]
FORMER = {"model.frozen_dtype": "model.param_dtype"}  # names of fields before


@dataclasses.dataclass(frozen=True)
class DataConfig(StudySource):
    """Which studies to learn from, and what the model sees of them."""

    side: Side = 448  # pixels of the square that images are resized to; a multiple of 112 fills every attention window
    ids: MovablePath = ""  # output of `deer select` (JSON) with the ids of the training studies to use; "": all


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The base model, and what of it is trained."""

    base: MovablePath = ""  # directory of Qwen2.5-VL, the model/ of an earlier stage, or "embedded": of phantoms
    tuning: Literal["vision", "full", "lora"] = "full"  # vision: tower and projector; lora: adapters of the language
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation
    # Of a frozen base; in int8 and nf4 its layers have 8 or 4 bits, the rest is bfloat16. Trained ones are float32.
    # The layers are those of the language model: the vision tower is never stored in fewer bits.
    param_dtype: Literal["float32", "bfloat16", "int8", "nf4"] = "float32"
    attention: Incidental[Implementation] = "auto"
    remat: Incidental[Remat] = (
        "dots"  # what the backward pass recomputes: nothing, all but large products, or each layer
    )
    loss_chunk: Count = 128  # positions of each row whose logits exist at one time


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """How reports are sampled."""

    group: Group = 8  # reports per study
    max_new_tokens: Count = 256
    temperature: NotNegative = 1.0
    top_p: Share = 1.0  # log-probabilities are computed without it


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What reports are judged by."""

    labeler: MovablePath = ""  # chexbert.pth, a labeler's directory, or "phantom"
    labeler_tokenizer: MovablePath = ""  # directory with the vocab.txt of chexbert.pth
    function: str = (
        ""  # module:function of a custom reward (texts, references) -> floats; "": label F1 + gamma * BLEU-2
    )
    gammas: tuple[Finite, ...] = (0.0, 0.25)  # one for each phase
    phase_ends: tuple[Probability, ...] = (0.5,)  # fractions of the run at which the phases end, except the last
    weights: str = "gradient"  # of tokens: uniform (GRPO), tfidf, gradient, or module:function of custom scores
    strength: Finite = -1.0  # w = 1 + strength * score; -1: the paper's 4 for tfidf and 1 for gradient
    uncertain: bool = False  # gradient: add the logits of the uncertain class


@dataclasses.dataclass(frozen=True)
class RunConfig(ReportTrainingConfig):
    """What both stages share."""

    FORMER: ClassVar[Mapping[str, str]] = FORMER

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    instruction: str = INSTRUCTION
    batch_size: Count = 64  # studies per update, over all devices
    micro_batch: Count = 8  # studies that one device processes at a time; the rest is accumulation


@dataclasses.dataclass(frozen=True)
class SftConfig(RunConfig):
    """Everything that decides a supervised run."""

    epochs: Steps = 1
    max_steps: StepsOrAll = 0  # end after this many updates; 0: after all epochs
    max_length: Count = 256  # tokens of a report including the end token; longer ones are cut and counted


@dataclasses.dataclass(frozen=True)
class RlConfig(RunConfig):
    """Everything that decides a run of reinforcement learning."""

    steps: Steps = 1000  # rollouts of a batch of studies
    updates: Steps = 1  # updates per rollout
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    objective: Objective = Objective()
    draft: Literal["none", "reports"] = "none"  # reports: next words of training reports are tried in rollouts
    best_by: str = "val/reward"  # the validation metric that chooses the best checkpoint
    best_is: Literal["lowest", "highest"] = "highest"  # whether lower or higher values of it are better


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """Everything that decides which reports `deer sample` writes."""

    FORMER: ClassVar[Mapping[str, str]] = FORMER

    data: DataConfig = DataConfig(layout="phantom")
    model: ModelConfig = ModelConfig()
    rollout: RolloutConfig = RolloutConfig(group=10, top_p=0.9)  # DDSampling; temperature 0: the likeliest report
    mesh: MeshConfig = MeshConfig()
    parallel: Mode = "auto"  # jit on one device, pmap (data parallel), or a mesh
    instruction: str = INSTRUCTION
    split: Literal["train", "validation", "test"] = "train"
    limit: CountOrNone = 0  # maximum number of studies; 0: all
    labeler: MovablePath = ""  # chexbert.pth, a labeler's directory, or "phantom": adds the labels of deer select
    labeler_tokenizer: MovablePath = ""  # directory with the vocab.txt of chexbert.pth
    batch_size: Count = 16  # studies at a time on each device
    draft: Incidental[Literal["auto", "none", "reports"]] = "auto"  # training reports whose next words are tried
    seed: Seed = 0


PAPER_SFT = OptimConfig(learning_rate=1e-5)
PAPER_RL = OptimConfig(learning_rate=1e-6, schedule="constant", warmup_ratio=0.0)
SPLIT = MeshConfig(data=1, fsdp=-1)  # parameters and optimizer state are split over all devices
LARGE = ModelConfig(dtype="bfloat16", param_dtype="bfloat16", remat="full")
DEMO_DATA = DataConfig(side=112, views=1, train_size=1600, validation_size=64)
DEMO_MODEL = ModelConfig(base="embedded")
DEMO_TOKENS = 80  # of a report

# Above each preset: its command, the hardware it is meant for, and the scores to expect (docs/results.md).
SFT_PRESETS: dict[str, SftConfig] = {
    # deer sft --preset demo --run-dir runs/sft
    # 2 CPU cores, minutes. Label F1 0.46 of the likeliest report of 400 phantom studies; nearest study 0.47.
    "demo": SftConfig(
        data=DEMO_DATA,
        model=dataclasses.replace(DEMO_MODEL, tuning="vision"),
        optim=OptimConfig(learning_rate=1e-3),
        batch_size=16,
        micro_batch=16,
        max_length=DEMO_TOKENS,
    ),
    # deer sft --preset mimic-cxr --model.base Qwen2.5-VL-3B-Instruct --data.source DATA --run-dir runs/sft
    # Eight devices of 32 GB; not run yet. The paper (Table 4): F1 0.385, BLEU-4 0.094.
    "mimic-cxr": SftConfig(
        data=DataConfig(layout="prepared", cleaning="mimic-cxr", views=1),
        model=dataclasses.replace(LARGE, tuning="vision"),
        mesh=SPLIT,
        optim=PAPER_SFT,
    ),
    # deer sft --preset chexpert-plus --model.base Qwen2.5-VL-3B-Instruct --data.source DATA --run-dir runs/sft-chexpert
    # Eight devices of 32 GB; not run yet. The paper gives no figure for this stage.
    "chexpert-plus": SftConfig(
        data=DataConfig(layout="prepared", views=1),
        model=dataclasses.replace(LARGE, tuning="vision"),
        mesh=SPLIT,
        optim=PAPER_SFT,
    ),
}

RL_PRESETS: dict[str, RlConfig] = {
    # deer rl --preset demo --run-dir runs/rl
    # 2 CPU cores, 1 to 2 minutes. Label F1 of the likeliest report 0.46 -> 0.50 on 200 phantom studies.
    "demo": RlConfig(
        data=DEMO_DATA,
        model=DEMO_MODEL,
        optim=OptimConfig(learning_rate=1.5e-4, schedule="constant", warmup_ratio=0.0),
        rollout=RolloutConfig(max_new_tokens=DEMO_TOKENS),
        reward=RewardConfig(labeler="phantom"),
        batch_size=16,
        steps=40,
        checkpoint_every=20,
        evaluate_every=20,
    ),
    # deer rl --preset mimic-cxr --model.base runs/sft/model --data.source DATA --data.ids chosen.json
    #     --reward.labeler chexbert.pth --reward.labeler-tokenizer bert-base-uncased --run-dir runs/deer
    # Eight TPU v6e or larger (docs/performance.md); not run yet. The paper (Table 1, 20% of the studies): F1 0.516.
    "mimic-cxr": RlConfig(
        data=DataConfig(layout="prepared", cleaning="mimic-cxr", views=1),
        model=LARGE,
        mesh=SPLIT,
        optim=PAPER_RL,
    ),
    # deer rl --preset chexpert-plus, with the options of mimic-cxr
    # The same hardware; not run yet. The paper (Table 2): macro F1 0.355.
    "chexpert-plus": RlConfig(
        data=DataConfig(layout="prepared", views=1),
        model=LARGE,
        mesh=SPLIT,
        optim=PAPER_RL,
    ),
}

SAMPLE_PRESETS: dict[str, SampleConfig] = {
    # deer sample --preset NAME --model.base runs/sft/model --output rollouts.jsonl
    # The hardware of deer rl. Ten reports of each study, for deer select.
    "demo": SampleConfig(
        data=DEMO_DATA,
        model=DEMO_MODEL,
        rollout=RolloutConfig(group=10, top_p=0.9, max_new_tokens=DEMO_TOKENS),
        labeler="phantom",
    ),
    **{
        name: SampleConfig(data=RL_PRESETS[name].data, model=dataclasses.replace(LARGE, tuning="lora"))
        for name in ("mimic-cxr", "chexpert-plus")
    },
}


def check_base(model: ModelConfig) -> None:
    """Raise UserError where no base model is named."""
    if not model.base:
        raise UserError("model.base: not given; name the directory of Qwen2.5-VL with --model.base DIR")


def check_data(config: RunConfig | SampleConfig) -> None:
    """Raise UserError where data is not named."""
    check_source(config.data)


def check_given(config: RunConfig | SampleConfig) -> None:
    """Raise UserError where data or a base model is not named."""
    check_data(config)
    check_base(config.model)


def check_rewarded(config: RlConfig) -> None:
    """Raise UserError where data, a base model, or what gives the rewards is not named."""
    check_given(config)
    if not (config.reward.labeler or config.reward.function):
        raise UserError(
            "reward.labeler: not given; label F1 needs a labeler: name one with --reward.labeler PATH, such as "
            "chexbert.pth, or another reward with --reward.function"
        )


NEEDS = (
    *STUDY_NEEDS,
    Needs("lora", "model.tuning", ("lora",)),
    Needs("model.param_dtype", "model.tuning", ("vision", "lora")),
    MESH_NEEDS,
    *METRICS_NEEDS,
)  # of both stages

RL_NEEDS = (
    *NEEDS,
    Needs("reward.labeler_tokenizer", "reward.labeler", bool, "--reward.labeler PATH"),
    *(
        Needs(f"reward.{name}", "reward.function", operator.not_, "no --reward.function")
        for name in ("gammas", "phase_ends")
    ),
    Needs(
        "reward.strength", "reward.weights", lambda weights: weights != "uniform", "--reward.weights tfidf or gradient"
    ),
    Needs("reward.uncertain", "reward.weights", ("gradient",)),
    Needs("objective.kl_bias_correction", "objective.kl", bool, "--objective.kl"),
    Needs("objective.entropy", "loss", operator.not_, "no --loss"),
)

ABLATION_NEEDS = (
    Needs("seed", give="give --seeds"),
    Needs("data.ids", give="its rows choose their studies; leave it out"),
    *(
        Needs(f"reward.{name}", give="its rows have their own; choose them with --rows")
        for name in ("weights", "gammas")
    ),
    *RL_NEEDS,
)

SAMPLE_NEEDS = (
    *STUDY_NEEDS,
    Needs("data.ids", "split", ("train",)),
    *(Needs(f"model.{name}", give="it computes no gradient; leave it out") for name in ("remat", "loss_chunk")),
    Needs("model.param_dtype", "model.tuning", ("vision", "lora")),
    Needs("labeler_tokenizer", "labeler", bool, "--labeler PATH"),
    MESH_NEEDS,
)

HELP = f"""{DATA_HELP}Presets: demo draws phantoms; mimic-cxr and chexpert-plus read the layout prepared.
These two also need --model.base DIR: Qwen2.5-VL, or the model/ of an earlier stage.
"""
LABELER_HELP = """Rewards by labels need --reward.labeler PATH: chexbert.pth, or what deer train-labeler wrote.
"""

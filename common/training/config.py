"""Config fields shared by all training commands, and those for training on reports."""

import dataclasses
from typing import Literal

from common.bounds import Count, CountOrNone, Seed, Steps, StepsOrAll
from common.config import EachStart, Incidental
from common.options import Needs
from common.training.evaluation import LOSS
from common.training.optim import OptimConfig
from common.training.parallel import MeshConfig, Mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What every training is given."""

    optim: OptimConfig = OptimConfig()
    mesh: MeshConfig = MeshConfig()
    parallel: Mode = "auto"  # jit on one device, pmap (data parallel), or a mesh
    checkpoint_every: Incidental[Steps] = 100  # updates between checkpoints; the last update always gets one
    evaluate_every: Steps = 100  # updates between evaluations, after which the best checkpoint may change
    best_by: str = LOSS  # the validation metric that chooses the best checkpoint
    best_is: Literal["lowest", "highest"] = "lowest"  # whether lower or higher values of it are better
    patience: CountOrNone = 0  # end training after this many evaluations without an improvement; 0: never
    seed: Seed = 0
    tensorboard: Incidental[bool] = True  # write TensorBoard event files
    wandb_project: Incidental[str] = ""  # Weights & Biases project to send numbers to; "": none
    profile: EachStart[CountOrNone] = 0  # steps to trace for TensorBoard and Perfetto, into profile/; 0: none


METRICS_NEEDS = tuple(
    Needs(name, "metrics", bool, "--metrics module:function") for name in ("metrics_every", "metrics_reports")
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportTrainingConfig(TrainingConfig):
    """The training config of a model that generates reports."""

    loss: str = ""  # module:function of a custom loss; "": that of the paper
    metrics: str = ""  # module:function that scores reports generated for validation data; "": none
    metrics_every: StepsOrAll = 0  # updates between these scores; 0: same as evaluate_every
    metrics_reports: Count = 64  # maximum number of validation reports to generate

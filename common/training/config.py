"""The fields of a config that every training has."""

import dataclasses
from typing import Literal

from common.bounds import CountOrNone, Seed, Steps
from common.config import EachStart, Incidental
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
    best_by: str = LOSS  # the measurement on validation data that chooses the best checkpoint
    best_is: Literal["lowest", "highest"] = "lowest"  # which value of it
    patience: CountOrNone = 0  # evaluations without a better one after which training ends; 0: it goes on
    seed: Seed = 0
    tensorboard: Incidental[bool] = True  # write TensorBoard event files
    wandb_project: Incidental[str] = ""  # Weights & Biases project to send numbers to; "": none
    profile: EachStart[CountOrNone] = 0  # steps to trace for TensorBoard and Perfetto, into profile/; 0: none

"""Configuration of UniCrossAdapter training, and the presets: phantoms, IU X-ray and MIMIC-CXR.

The paper gives Adam, learning rate 1e-5, batch 16, weight decay 5e-5 (IU X-ray) and 4e-5 (MIMIC-CXR), dropout 0.09
and 0.1, 3 + 3 and 6 + 6 layers, 60 and 78 tokens; the authors' code adds AMSGrad, gradients clipped to 0.1, 25 and 2
epochs and beams of 3. `conditioning = "causal"` and no mirroring are our choices (docs/explanation/unicross.md).
"""

import dataclasses
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from common.bounds import Count, Few, Finite, NotNegative, Probability, Rate, Side, Steps, StepsOrAll, Within
from common.config import Incidental, MovablePath
from common.data.cleaning import CleaningName
from common.data.source import HELP as DATA_HELP
from common.data.source import REQUIRED, STUDY_NEEDS, StudySource, check_source
from common.errors import UserError
from common.options import Needs
from common.training.config import METRICS_NEEDS, ReportTrainingConfig
from common.training.optim import OptimConfig
from common.training.parallel import MESH_NEEDS
from unicross_jax.model import Conditioning

ASSETS = Path(__file__).parent / "assets"
EMBEDDED_CLIP = ASSETS / "clip"  # made by `python -m unicross_jax.pretrain`
EMBEDDED_RUN = ASSETS / "demo"  # the model of a demo, for `unicross report` where no run is named

Degrees = Annotated[float, Within(0, 180)]
ReportLength = Annotated[int, Within(3, 1 << 20)]  # start, a word and end
LENGTH_PENALTY = Within(-100, 100)  # an exponent
LengthPenalty = Annotated[float, LENGTH_PENALTY]


@dataclasses.dataclass(frozen=True)
class DataConfig(StudySource):
    """Which studies to learn from, and what a model sees of them."""

    colour: bool = False  # three channels, as photographs of the eye have them; otherwise grey
    resize: Side = 256  # pixels of the shorter side, before a square of CLIP's image size is cut out
    degrees: Degrees = 5.0  # training images are turned by at most so much
    brightness: Probability = 0.1  # and made brighter or darker by at most this share
    mirror: bool = False  # and half of them mirrored, against the "left" and "right" of their reports


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """The tokens of reports."""

    kind: Literal["words", "clip"] = "words"  # words of the training reports, or CLIP's own pieces
    minimum_count: Count = 3  # times that a word must occur in the training reports
    merged_with: MovablePath = ""  # R2Gen's annotation.json of a second corpus, whose frequent words are added
    merged_minimum_count: Count = 10
    merged_cleaning: CleaningName = "mimic-cxr"


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """CLIP, and what is trained around it."""

    clip: MovablePath = "embedded"  # RN101.pt, a safetensors file or its directory; "embedded": the small shipped one
    clip_vocabulary: MovablePath = ""  # bpe_simple_vocab_16e6.txt.gz, where `clip` is a published one
    clip_weights: Literal["trained", "random"] = "trained"  # random: without CLIP's pre-training (Table 2)
    conditioning: Conditioning = "causal"  # published: the paper's equations, which see the report they predict
    prompt: str = "chest radiograph"  # causal: what images are coupled with where a study has no indication
    adapters: Literal["both", "within", "across", "none"] = "both"  # attention within and across modalities
    modulation: bool = True  # text gates the visual maps (Eq. 5)
    multi_scale: bool = True  # three visual maps are merged, else the last one alone
    heads: Few = 8
    vision_layers: Few = 3
    decoder_layers: Few = 3
    dropout: Rate = 0.09  # of vision Transformer and decoder
    adapter_dropout: Rate = 0.1
    logit_init_scale: Finite = 0.0  # logits begin with so many times CLIP's word embeddings; 0: with random weights
    dtype: Literal["float32", "bfloat16"] = "float32"  # CLIP's computation and its frozen weights


@dataclasses.dataclass(frozen=True)
class RunConfig(ReportTrainingConfig):
    """Everything that decides a training run."""

    FORMER: ClassVar[Mapping[str, str]] = {
        "visual_rate": "vision_lr_multiplier",
        "model.words_begin": "model.logit_init_scale",
    }  # names of fields before, for the command line

    data: DataConfig = DataConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    model: ModelConfig = ModelConfig()
    init_from: MovablePath = ""  # a run, or its model/, to train further; "embedded": the shipped model; "": none
    vision_lr_multiplier: NotNegative = 1.0  # of all that comes before the decoder, times the decoder's rate
    epochs: Steps = 1
    max_steps: StepsOrAll = 0  # updates after which to end; 0: after all epochs
    batch_size: Count = 16  # studies of one update, over all devices
    micro_batch: Count = 16  # studies that one device takes at a time; the rest is accumulation
    max_length: ReportLength = 60  # tokens of a report with its start and end; a longer one is cut, and counted
    loss_chunk: Count = 128  # positions of each row whose logits exist at one time
    beams: Incidental[Few] = 3  # of generation; 1: greedy
    length_penalty: Incidental[LengthPenalty] = 0.0  # of beams, whose log-probability is divided by length ** this


PAPER = OptimConfig(
    optimizer="amsgrad", learning_rate=1e-5, schedule="constant", warmup_ratio=0.0, weight_decay=5e-5,
    clip_norm=0.0, clip_value=0.1,
)  # fmt: skip

SMALL = RunConfig(
    data=DataConfig(cleaning="iu-xray", resize=72, train_size=2400),
    # The small CLIP predicts next words by ten times its word embeddings: the decoder need not learn that again.
    model=ModelConfig(
        heads=4, vision_layers=1, decoder_layers=2, dropout=0.0, adapter_dropout=0.0, logit_init_scale=10.0
    ),
    optim=OptimConfig(learning_rate=3e-3, warmup_ratio=0.05, weight_decay=0.01),
    vision_lr_multiplier=0.05,  # at 1 the memory becomes the same for every image, within 60 updates
    epochs=5,
    checkpoint_every=150,
    evaluate_every=150,  # an epoch
    max_length=48,
    length_penalty=0.5,  # without it reports are a tenth shorter than the references
)

# Above each preset: its command, the hardware it was made for, and what it should reach (docs/results.md).
PRESETS: dict[str, RunConfig] = {
    # unicross train --preset demo --run-dir runs/unicross-demo
    # 2 CPU cores, 1 to 2 minutes: the shipped model learns the images of another scanner.
    # Findings F1 0.50 on 200 phantom studies, 0.32 before; constant report 0, nearest study 0.47.
    "demo": dataclasses.replace(
        SMALL,
        data=dataclasses.replace(SMALL.data, phantom_seed=1, phantom_scanner="second"),
        init_from="embedded",
        optim=dataclasses.replace(SMALL.optim, learning_rate=2e-3),
        vision_lr_multiplier=0.1,
        epochs=1,
        checkpoint_every=50,
        evaluate_every=50,
    ),
    # unicross train --preset small --run-dir runs/small
    # 2 CPU cores, 3 to 5 minutes, from random weights. Findings F1 0.46 on 200 phantom studies; constant report 0,
    # nearest study 0.59.
    "small": SMALL,
    # unicross train --preset iu-xray --data.source annotation.json --data.images images --model.clip RN101.pt
    #     --model.clip-vocabulary bpe_simple_vocab_16e6.txt.gz --run-dir runs/iu
    # One device of 16 GB; not run yet. The paper (Table 1): BLEU-4 0.195, ROUGE-L 0.395, METEOR 0.210.
    "iu-xray": RunConfig(
        data=DataConfig(layout="annotation", cleaning="iu-xray"),
        model=ModelConfig(clip=""),
        optim=PAPER,
        epochs=25,
    ),
    # unicross train --preset mimic-cxr --data.source data/image_studies/mimic/1.0.0 --model.clip RN101.pt
    #     --model.clip-vocabulary bpe_simple_vocab_16e6.txt.gz --run-dir runs/mimic
    # One device of 16 GB, or several; not run yet. The paper (Table 1): BLEU-4 0.120, ROUGE-L 0.289, METEOR 0.134.
    "mimic-cxr": RunConfig(
        data=DataConfig(layout="prepared", cleaning="mimic-cxr", views=1, dicom_contrast="mimic-cxr-jpg"),
        vocabulary=VocabularyConfig(minimum_count=10),
        model=ModelConfig(clip="", vision_layers=6, decoder_layers=6, dropout=0.1),
        optim=dataclasses.replace(PAPER, weight_decay=4e-5),
        epochs=2,
        checkpoint_every=1000,
        evaluate_every=1000,
        max_length=78,
    ),
}


def check_clip(model: ModelConfig) -> None:
    """Raise UserError where CLIP's weights are not named."""
    if not model.clip:
        raise UserError("model.clip: not given; name CLIP's weights with --model.clip RN101.pt")


def check_given(config: RunConfig) -> None:
    """Raise UserError where data or CLIP's weights are not named."""
    check_source(config.data)
    check_clip(config.model)


NEEDS = (
    *STUDY_NEEDS,
    Needs("data.colour", "data.layout", tuple(layout for layout in REQUIRED if layout != "phantom")),
    *(Needs(f"vocabulary.{name}", "vocabulary.kind", ("words",)) for name in ("minimum_count", "merged_with")),
    *(
        Needs(f"vocabulary.merged_{name}", "vocabulary.merged_with", bool, "--vocabulary.merged-with annotation.json")
        for name in ("minimum_count", "cleaning")
    ),
    *(
        Needs(name, "init_from", operator.not_, "no --init-from")
        for name in ("vocabulary.minimum_count", "vocabulary.merged_with", "model.logit_init_scale")
    ),
    Needs("model.clip_vocabulary", "model.clip", lambda clip: clip != "embedded", "--model.clip RN101.pt"),
    Needs("model.prompt", "model.conditioning", ("causal",)),
    Needs("model.adapter_dropout", "model.adapters", ("both", "within", "across")),
    Needs("length_penalty", "beams", lambda beams: beams > 1, "--beams 2 or more"),
    MESH_NEEDS,
    *METRICS_NEEDS,
)

# An ablation gives these to each of its runs.
ABLATION_NEEDS = (Needs("seed", give="give --seeds"), *NEEDS)

HELP = f"""{DATA_HELP}Presets: demo and small draw phantoms; iu-xray reads the layout annotation, \
mimic-cxr the layout prepared.
These two also need --model.clip RN101.pt --model.clip-vocabulary bpe_simple_vocab_16e6.txt.gz.
"""

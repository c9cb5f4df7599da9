"""Configuration of labeler training, and the presets: phantoms, Open-i's gold labels, CheXbert's own recipe."""

import dataclasses
import operator
from typing import Literal

from common.bounds import Count, Probability, Steps, StepsOrAll, check_numbers
from common.config import Incidental, MovablePath
from common.errors import UserError
from common.models.bert import BertConfig
from common.options import Needs
from common.training.config import TrainingConfig
from common.training.optim import OptimConfig
from common.training.parallel import MESH_NEEDS


@dataclasses.dataclass(frozen=True)
class LabelerRunConfig(TrainingConfig):
    """Everything that decides the training of a labeler."""

    data: Incidental[str] = "phantom"  # phantom, openi, or a JSONL file of rows {"id", "report", "labels"}
    validation: MovablePath = ""  # JSONL; without it a tenth of the rows is held out
    test: MovablePath = ""  # JSONL
    archive: MovablePath = ""  # openi: NLMCXR_reports.tgz
    gold: MovablePath = ""  # openi: openi_gld_std14.csv
    test_ids: MovablePath = ""  # openi: openi-testset.txt
    train_size: Count = 48_000  # phantom reports
    validation_size: Count = 500  # phantom reports, or Open-i reports set aside from the training split
    test_size: Incidental[Count] = 1000  # phantom reports
    damaged: Probability = 0.5  # share of phantom reports that are cut, repeated, mixed, scrambled
    init: MovablePath = ""  # directory of bert-base-uncased, weights and vocab.txt; without it training is from scratch
    encoder: BertConfig = BertConfig()  # from scratch; vocab_size is then the most that the vocabulary may hold
    shuffle: bool = False  # sentences of a training report are shuffled in each epoch
    epochs: Steps = 1
    max_steps: StepsOrAll = 0  # updates after which to end; 0: after all epochs
    batch_size: Count = 16  # reports of one update, over all devices
    buckets: tuple[Count, ...] = (64, 128, 256, 512)  # tokens that rows are padded to
    export_dtype: Literal["float32", "float16"] = "float32"  # of the labeler's weights as they are written


# Above each preset: its command, the hardware it was made for, and what it should reach (docs/results.md).
PRESETS = {
    # deer train-labeler --preset phantom --output runs/labeler
    # 2 CPU cores, 25 minutes. Macro F1 0.968 on 1,000 phantom reports as written, 0.905 on damaged ones.
    "phantom": LabelerRunConfig(
        encoder=BertConfig(
            vocab_size=900, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512,
            max_position_embeddings=256, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        optim=OptimConfig(learning_rate=2e-3, warmup_ratio=0.03, weight_decay=0.01),
        epochs=3,
        batch_size=32,
        checkpoint_every=500,
        evaluate_every=500,
        buckets=(32, 64),
        export_dtype="float16",
    ),
    # deer train-labeler --preset openi --archive NLMCXR_reports.tgz --gold openi_gld_std14.csv
    #     --test-ids openi-testset.txt --output runs/openi-labeler
    # One CPU core, 12 minutes. Micro F1 0.821 on 771 test reports, macro F1 0.368.
    "openi": LabelerRunConfig(
        data="openi",
        validation_size=300,
        encoder=BertConfig(
            vocab_size=2000, hidden_size=128, num_hidden_layers=2, num_attention_heads=4, intermediate_size=512,
            max_position_embeddings=320,
        ),
        shuffle=True,
        optim=OptimConfig(learning_rate=1e-3, warmup_ratio=0.1, weight_decay=0.01),
        epochs=20,
        batch_size=32,
        evaluate_every=90,
        buckets=(48, 64, 96, 128, 320),
    ),
    # deer train-labeler --preset chexbert --data labelled.jsonl --init bert-base-uncased --output runs/labeler
    # One device of 16 GB; not run yet.
    # The authors' fine-tuning: Adam at 2e-5 without decay, batch 18, 8 epochs, dropout 0.1.
    "chexbert": LabelerRunConfig(
        data="",
        optim=OptimConfig(optimizer="adam", learning_rate=2e-5, schedule="constant", warmup_ratio=0, clip_norm=0),
        epochs=8,
        batch_size=18,
    ),
}  # fmt: skip


GENERATED = ("phantom", "openi")  # values of `data` that are no file

NEEDS = (
    *(Needs(name, "data", lambda data: data not in GENERATED, "--data FILE.jsonl") for name in ("validation", "test")),
    *(Needs(name, "data", ("openi",)) for name in ("archive", "gold", "test_ids")),
    *(Needs(name, "data", ("phantom",)) for name in ("train_size", "test_size", "damaged")),
    Needs("validation_size", "data", GENERATED),
    Needs("encoder", "init", operator.not_, "no --init"),
    MESH_NEEDS,
)


def check_given(config: LabelerRunConfig) -> None:
    """Raise UserError where data is not named."""
    if not config.data:
        raise UserError("data: not given; expected phantom, openi, or a JSONL file of labelled reports")
    for name in ("archive", "gold", "test_ids") if config.data == "openi" else ():
        if not getattr(config, name):
            raise UserError(
                f"{name}: not given; data openi needs archive (NLMCXR_reports.tgz), gold (openi_gld_std14.csv) and "
                "test_ids (openi-testset.txt)"
            )


def check_config(config: LabelerRunConfig) -> None:
    """Raise UserError for a number out of its bounds."""
    check_numbers(config)

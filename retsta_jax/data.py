"""The three sources of report pairs as training, validation and test splits."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.data.openi import count_unknown_ids, openi_pairs, openi_splits, read_openi, read_test_ids
from common.data.records import Quarantine, ReportPair, check_splits
from common.data.summary import data_line
from common.errors import UserError
from retsta_jax.augmentation.augment import augment_pairs
from retsta_jax.augmentation.perturb import known_findings
from retsta_jax.config import FILES, RetstaConfig, check_files, scored_as
from retsta_jax.corpus.findings import FundusStudy
from retsta_jax.corpus.pairs import make_splits, split_of
from retsta_jax.pairs import apart_from, read_pairs
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED, Terminology


class Splits(NamedTuple):
    """The splits of a corpus; no id is in two of them."""

    train: list[ReportPair]
    validation: list[ReportPair]
    test: list[ReportPair]


def load_splits(config: RetstaConfig, quarantine: Quarantine) -> Splits:
    """The pairs that `config.data` names. Unusable records are counted in `quarantine`; raises UserError."""
    data = config.data
    check_files(data)
    if data.corpus == "fundus":
        sizes = data.train_size, data.validation_size, data.test_size
        return Splits(**make_splits(*sizes, seed=config.seed, language=data.language, held_out=data.held_out))
    if data.corpus == "openi":
        studies = read_openi(Path(data.archive))
        test_ids = read_test_ids(Path(data.test_ids))
        count_unknown_ids(test_ids, [study.id for study in studies], quarantine)
        pairs = openi_pairs(studies, quarantine)
        return Splits(**openi_splits(pairs, test_ids, data.validation_size, config.seed))
    files = {name: getattr(data, name) for name in Splits._fields}
    splits = {name: read_pairs(Path(file), quarantine, data.columns) for name, file in files.items()}
    check_splits(splits)
    return Splits(**splits)


def augmented(config: RetstaConfig, splits: Splits) -> list[ReportPair]:
    """The pairs to train on: the training split, and those that augmentation makes of it.

    No perturbation makes a target that validation or test have; of generated pairs, none that they could have. Pairs
    whose targets are codes get the kinds of change that leave the target as it is; other names only from a terminology
    of the user's. Raises UserError for fewer than the training split has.
    """
    data, train = config.data, splits.train
    if not data.augment_to:
        return train
    if data.augment_to < len(train):
        raise UserError(
            f"data.augment_to must be at least {len(train):,}, the pairs of the training split, or 0, found "
            f"{data.augment_to:,}"
        )
    rates = config.augment
    if scored_as(data) == "openi":
        rates = dataclasses.replace(rates, negation=0.0, probability=0.0)
        terms = load_terminology(data.terminology) if data.terminology else Terminology(())
    else:
        terms = load_terminology(data.terminology or SHIPPED)
    kept_apart = apart_from([*splits.validation, *splits.test])

    def accepts(pair: ReportPair) -> bool:
        if data.corpus == "fundus":
            findings = known_findings(pair.target, pair.language, load_terminology())
            if findings is not None and split_of(FundusStudy(findings)) != "train":
                return False
        return kept_apart(pair)

    return augment_pairs(train, data.augment_to, rates, terms, config.seed, accepts)


def splits_line(
    config: RetstaConfig,
    counts: Mapping[str, int],
    quarantine: Quarantine,
    unknown: float | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The line that names the data of a config."""
    data = config.data
    files = [getattr(data, name) for name in FILES[data.corpus]]
    generated = ""
    if data.corpus == "fundus":
        generated = f", language {data.language}, held out by {data.held_out}, seed {config.seed}"
    kind = f"{data.corpus}{generated}, cleaning lossless"
    return data_line(files, kind, counts, quarantine=quarantine, unknown=unknown, notes=notes)

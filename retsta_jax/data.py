"""The three sources of report pairs as training, validation and test parts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, get_args

from common.data.cleaning import clean_report
from common.data.openi import count_unknown_ids, openi_pairs, openi_splits, read_openi, read_test_ids
from common.data.records import Language, Quarantine, ReportPair, check_splits
from common.data.summary import data_line
from common.errors import UserError
from common.jsonl import read_rows
from common.metrics.tokenize import language_of
from retsta_jax.config import FILES, RetstaConfig
from retsta_jax.corpus import make_splits


class Splits(NamedTuple):
    """The parts of a corpus; no id is in two of them."""

    train: list[ReportPair]
    validation: list[ReportPair]
    test: list[ReportPair]


def load_splits(config: RetstaConfig, quarantine: Quarantine) -> Splits:
    """The pairs that `config.data` names. Unusable records are counted in `quarantine`; raises UserError."""
    data = config.data
    if data.corpus == "fundus":
        sizes = data.train_size, data.validation_size, data.test_size
        return Splits(**make_splits(*sizes, seed=config.seed, language=data.language, held_out=data.held_out))
    if data.corpus == "openi":
        for name in FILES["openi"]:
            if not getattr(data, name):
                raise UserError(
                    f"data.{name}: not given; corpus openi needs --data.archive NLMCXR_reports.tgz and "
                    "--data.test-ids openi-testset.txt"
                )
        studies = read_openi(Path(data.archive))
        test_ids = read_test_ids(Path(data.test_ids))
        count_unknown_ids(test_ids, [study.id for study in studies], quarantine)
        pairs = openi_pairs(studies, quarantine)
        return Splits(**openi_splits(pairs, test_ids, data.validation_size, config.seed))
    files = {name: getattr(data, name) for name in Splits._fields}
    for name, file in files.items():
        if not file:
            raise UserError(
                f'data.{name}: not given; corpus jsonl needs files of rows {{"id", "source", "target"}} as '
                "--data.train, --data.validation and --data.test"
            )
    parts = {name: read_pairs(Path(file), quarantine) for name, file in files.items()}
    check_splits(parts)
    return Splits(**parts)


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


def read_pairs(file: Path, quarantine: Quarantine) -> list[ReportPair]:
    """Pairs from rows {"id", "source", "target"} with an optional "language" (en or zh; else by its characters).

    An id that is a number is kept as its text. A row without text on either side is quarantined. Raises UserError
    naming the line of a malformed row.
    """
    pairs = []
    for row in read_rows(file, {"id": str | int, "source": str, "target": str}):
        id_ = str(row["id"])
        language = row.get("language", language_of(row["source"]))
        if language not in get_args(Language):
            raise UserError(f"{file}: row {row['id']}: language is {language!r}, expected en or zh")
        source, target = clean_report(row["source"]), clean_report(row["target"])
        if source and target:
            pairs.append(ReportPair(id_, source, target, language))
        else:
            quarantine.add(id_, "no source text" if target else "no target text")
    return pairs

"""`retsta label`: a trained model's standard reports for any number of free-text ones, filtered (RetSTA, section 2.3).

Reports are labelled in shards, each a file that a later run continues, on all devices of this process; of several
hosts each takes its own shards. Then the first one applies the rules of a judge (`filters.py`) and removes
duplicates among pairs with the same statements (`duplicates.py`). Kept pairs are in `pairs.jsonl`, all others, with
the reason, in `rejected.jsonl`.
"""

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from common.bounds import Count
from common.data.cleaning import clean_report
from common.data.records import ReportPair
from common.data.summary import say_data
from common.endpoint import Endpoint, Failure, Outcome
from common.errors import UserError
from common.generation.processes import of_first
from common.io.exports import CARD, is_card
from common.io.jsonl import read_jsonl, write_rows
from common.io.locks import locked_by_first, locked_file
from common.io.outputs import check_own_object, check_own_page, refuse_foreign
from common.io.resumable import claim_output, row_writer, rows_done
from common.io.safetensors import write_json
from common.io.terminal import say
from common.process.hosts import meet
from common.report.page import REPORT_FILE
from common.training.parallel import MeshConfig
from retsta_jax.endpoint_standardizer import answer_of, is_refused, record_of, standardizing
from retsta_jax.labelling.duplicates import Duplicate, DuplicateConfig, deduplicate
from retsta_jax.labelling.filters import Judge, Judgement
from retsta_jax.readable import PromptEncoder, read_encoder, reports_line, unusable
from retsta_jax.reports import pair_language, read_reports
from retsta_jax.standardize import Standardized, Trained, config_of_trained, load_trained, standardize

SHARDS, PAIRS, REJECTED, FUNNEL = "shards", "pairs.jsonl", "rejected.jsonl", "funnel.json"
DUPLICATE = "duplicate"
EXAMPLES = 3  # of each reason, for the page
UNREAD = Standardized("", False)  # of a report that the model cannot read
ROW = {"standard": str, "complete": bool}
COUNTS = ("reports", "kept", "rejected", "duplicates", "plain_text")  # of a funnel, as it is written

Report = tuple[str | int, str]


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """How reports are labelled and filtered."""

    skip_rules: tuple[str, ...] = ()  # names of rules that reject nothing
    duplicates: DuplicateConfig = DuplicateConfig()
    shard_size: Count = 1000  # reports in a file that is written at a time
    batch_size: Count = 32  # reports at a time on each device
    mesh: MeshConfig = MeshConfig()  # of the devices of each host
    columns: tuple[str, ...] = ()  # of a table of reports, under other names, such as report=text


@dataclasses.dataclass(frozen=True)
class Funnel:
    """How many reports came, how many pairs stayed, and why the others did not.

    `plain_text`: what similarity of text alone would have `removed`, and how many of those state something `different`
    from the pair that stays.
    """

    reports: int
    kept: int
    rejected: dict[str, int]
    duplicates: dict[str, int]
    plain_text: dict[str, int]
    examples: tuple[dict[str, str], ...] = ()  # of rejected pairs and of different ones, with their texts


def label_reports(
    run_dir: Path, source: str, output: Path, judge: Judge, config: LabelConfig, endpoint: Endpoint | None = None
) -> Funnel:
    """Label the reports of a file into a directory, and filter them. With several processes, the first one filters.

    With an `endpoint`, which is asked in place of the run's weights, the first one labels, too. Raises UserError.
    """

    def filtered() -> dict[str, Any]:
        rows = [row for file, _ in shards(output, reports, config.shard_size) for row in read_jsonl(file, ROW)]
        kept, rejected = apply_rules(reports, rows, judge, config.skip_rules)
        return dataclasses.asdict(remove_duplicates(len(reports), kept, rejected, output, config.duplicates))

    reports = read_reports(source, config.columns)
    if endpoint is None:
        config_of_trained(run_dir)
    encoder = read_encoder(run_dir)
    check_folder(output)
    make_folder(output / SHARDS)
    with locked_by_first(output / PAIRS, locked_file):
        write_shards(endpoint or load_trained(run_dir, config.mesh), encoder, reports, source, output, config)
        meet("labelled")
        found = of_first(filtered)
        return Funnel(**found | {"examples": tuple(found["examples"])})


def check_folder(output: Path) -> None:
    """Raise UserError where a directory is that of a run, or holds something else under the names of our files."""
    if (output / "config.json").exists():
        raise UserError(f"{output}: is the directory of a run; give another --output")
    for name in (PAIRS, REJECTED):
        if (output / name).exists() and not (output / SHARDS).is_dir():
            raise refuse_foreign(output / name, "an earlier output of this command", f"no {SHARDS} beside it")
    if (output / CARD).exists() and not is_card(output / CARD):
        raise refuse_foreign(output / CARD, "a card of this project", "no mark of one")
    check_own_object(output / FUNNEL, COUNTS)
    check_own_page(output / REPORT_FILE)


def make_folder(folder: Path) -> None:
    """Make a directory where there is none. Raises UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error


def shards(output: Path, reports: Sequence[Report], size: int) -> list[tuple[Path, Sequence[Report]]]:
    """The files of the shards, each with its reports."""
    starts = range(0, len(reports), size)
    return [(shard_file(output, start // size), reports[start : start + size]) for start in starts]


def shard_file(output: Path, number: int) -> Path:
    """The file of a shard, from 0."""
    return output / SHARDS / f"{number:05}.jsonl"


def write_shards(
    model: Trained | Endpoint,
    encoder: PromptEncoder,
    reports: Sequence[Report],
    source: str,
    output: Path,
    config: LabelConfig,
) -> None:
    """Write, or go on writing, this process's shards of the standard reports; those of an endpoint are the first's."""
    every = shards(output, reports, config.shard_size)
    here, processes = jax.process_index(), jax.process_count()
    mine = every[here::processes] if isinstance(model, Trained) else every if here == 0 else []
    done = {file: rows_done(file, [id_ for id_, _ in part], ROW) for file, part in mine}
    left = [(file, part[done[file] :]) for file, part in mine if done[file] < len(part)]
    made = record_of(model, encoder)
    with contextlib.ExitStack() as stack:
        if isinstance(model, Endpoint):
            rows = stack.enter_context(endpoint_rows(model, encoder, [one for _, part in left for one in part]))
        else:
            rows = itertools.chain.from_iterable(label_rows(model, part, config.batch_size) for _, part in left)
        for file, part in mine:
            claim_output(file, made, [report for _, report in part])
        say_data(reports_line(encoder, source, [report for _, report in reports], sum(done.values())))
        for file, part in left:
            with row_writer(file) as write:
                for row in itertools.islice(rows, len(part)):
                    write(row)
            say(f"labelled: shard {file.stem} of {len(every)}", error=True)


def label_rows(trained: Trained, reports: Sequence[Report], batch_size: int) -> Iterator[dict[str, Any]]:
    """A row {"id", "standard", "complete"} for each report; one that the model cannot read has no standard report."""
    reasons = unusable(trained.encoder, [report for _, report in reports])
    readable = [row for row, reason in zip(reports, reasons, strict=True) if not reason]
    ids, texts = [id_ for id_, _ in readable], [report for _, report in readable]
    found = standardize(trained, trained.variables, texts, batch_size, ids)
    for (id_, _), reason in zip(reports, reasons, strict=True):
        yield row_of(id_, UNREAD if reason else next(found))


@contextlib.contextmanager
def endpoint_rows(
    endpoint: Endpoint, encoder: PromptEncoder, reports: Sequence[Report]
) -> Iterator[Iterator[dict[str, Any]]]:
    """As `label_rows`, by an endpoint; a report that it refuses is one that it cannot read. Raises UserError."""
    reasons = unusable(encoder, [report for _, report in reports])
    texts = [report for (_, report), reason in zip(reports, reasons, strict=True) if not reason]
    refused: Counter[str] = Counter()

    def rows(outcomes: Iterator[Outcome]) -> Iterator[dict[str, Any]]:
        for (id_, _), reason in zip(reports, reasons, strict=True):
            outcome = None if reason else next(outcomes)
            if isinstance(outcome, Failure) and is_refused(outcome):
                refused[outcome.kind] += 1
                outcome = None
            yield row_of(id_, UNREAD if outcome is None else answer_of(outcome, id_))

    if not reports:
        yield iter(())
        return
    with standardizing(encoder, endpoint, texts) as outcomes:
        yield rows(outcomes)
    if refused:
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in refused.items())
        say(
            f"the endpoint refused {sum(refused.values()):,} reports ({kinds}), which have no standard form", error=True
        )


def row_of(id_: str | int, found: Standardized) -> dict[str, Any]:
    """A row of a shard."""
    return {"id": id_, "standard": found.text, "complete": found.complete}


class Kept(NamedTuple):
    """A pair that keeps all rules."""

    pair: ReportPair
    judgement: Judgement


class Rejected(NamedTuple):
    """A pair that breaks rules."""

    id: str | int
    rules: list[str]
    pair: ReportPair


def apply_rules(
    reports: Sequence[Report], rows: Sequence[Mapping[str, Any]], judge: Judge, skipped: Sequence[str] = ()
) -> tuple[list[Kept], list[Rejected]]:
    """The pairs of reports with their labelled rows that keep all rules, and the others."""
    kept, rejected = [], []
    for (id_, report), row in zip(reports, rows, strict=True):
        pair = ReportPair(str(id_), clean_report(report), row["standard"], pair_language(report, row["standard"]))
        judgement = judge.judge(pair, row["complete"])
        if broken := [name for name in judgement.broken if name not in skipped]:
            rejected.append(Rejected(id_, broken, pair))
        else:
            kept.append(Kept(pair, judgement))
    return kept, rejected


def remove_duplicates(
    reports: int,
    kept: Sequence[Kept],
    rejected: Sequence[Rejected],
    output: Path,
    config: DuplicateConfig,
) -> Funnel:
    """Remove duplicates; writes pairs.jsonl, rejected.jsonl and funnel.json."""
    found = deduplicate(((one.pair.id, one.pair.source, one.judgement.states) for one in kept), config)
    removed = {duplicate.id for duplicate in found.removed}
    pairs = [one.pair for one in kept if one.pair.id not in removed]
    funnel = Funnel(
        reports=reports,
        kept=len(pairs),
        rejected=dict(Counter(one.rules[0] for one in rejected).most_common()),
        duplicates=dict(Counter(duplicate.kind for duplicate in found.removed)),
        plain_text={"removed": found.plain_text.removed, "different": found.plain_text.different},
        examples=examples_of(kept, rejected, found.plain_text.examples),
    )
    left_out = [{"id": one.id, "reasons": one.rules} for one in rejected]
    left_out += [{"id": one.id, "reasons": [DUPLICATE], **one._asdict()} for one in found.removed]
    write_rows(output / PAIRS, (dataclasses.asdict(pair) for pair in pairs))
    write_rows(output / REJECTED, left_out)
    write_json(output / FUNNEL, {name: getattr(funnel, name) for name in COUNTS})
    return funnel


def examples_of(
    kept: Sequence[Kept], rejected: Sequence[Rejected], different: Sequence[Duplicate]
) -> tuple[dict[str, str], ...]:
    """Some rejected pairs of each reason, and some that only similarity of text would have removed."""
    shown: Counter[str] = Counter()
    examples = []
    for one in rejected:
        shown[one.rules[0]] += 1
        if shown[one.rules[0]] <= EXAMPLES:
            examples.append({"reason": ", ".join(one.rules), "source": one.pair.source, "standard": one.pair.target})
    by_id = {one.pair.id: one.pair for one in kept}
    for duplicate in different[:EXAMPLES]:
        two = [by_id[str(duplicate.stays)], by_id[str(duplicate.id)]]
        examples.append(
            {
                "reason": f"similarity of text {duplicate.similarity:.2f}, but other findings: both stay",
                "source": "\n".join(pair.source for pair in two),
                "standard": "\n".join(pair.target for pair in two),
            }
        )
    return tuple(examples)

"""The line with which a command names the data that it works on: counts alone, never the text of a report or an id."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from common.data.records import Quarantine
from common.data.source import StudySource
from common.io.terminal import printable, say
from common.process.first import is_first_process

MOST_FILES = 4  # that are named


class Cut(NamedTuple):
    """How many `reports` are longer than `limit` tokens."""

    reports: int
    limit: int


def data_line(
    files: Sequence[object],
    kind: str,
    counts: Mapping[str, int],
    *,
    quarantine: Quarantine | None = None,
    cut: Cut | None = None,
    unknown: float | None = None,
    notes: Sequence[str] = (),
) -> str:
    """What a command reads: files and their kind, rows by split, and what of them is left out, cut or unknown.

    `unknown` is a share of words. What is None does not apply. `notes` and the quarantine's notes come last.
    """
    shown = [printable(file) for file in files[:MOST_FILES]]
    if more := len(files) - len(shown):
        shown.append(f"{more:,} more")
    parts = [", ".join(f"{name} {count:,}" for name, count in counts.items())]
    if quarantine is not None:
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in quarantine.counts().items())
        parts.append(f"quarantined {len(quarantine):,}" + (f" ({reasons})" if reasons else ""))
    if cut is not None:
        parts.append(f"cut {cut.reports:,} at {cut.limit:,} tokens")
    if unknown is not None:
        parts.append(f"{unknown:.1%} of words unknown")
    if quarantine is not None:
        parts += [f"{count:,} {what}" for what, count in quarantine.notes.items()]
    return f"data: {', '.join(shown) or 'generated'} ({kind}): {'; '.join([*parts, *notes])}"


def study_line(
    data: StudySource,
    counts: Mapping[str, int],
    quarantine: Quarantine,
    *,
    cut: Cut | None = None,
    unknown: float | None = None,
    files: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> str:
    """`data_line` of studies with images; `files` are read beside those of the source."""
    drawn = data.layout == "phantom"
    own = [] if drawn else filter(None, (data.source, data.images, data.split))
    kind = (
        f"{data.layout}, "
        + (f"seed {data.phantom_seed}, {data.phantom_scanner} scanner, " if drawn else "")
        + f"cleaning {quarantine.cleaning or data.cleaning}"
    )
    named = [*(["drawn"] if drawn else own), *filter(None, files)]
    return data_line(named, kind, counts, quarantine=quarantine, cut=cut, unknown=unknown, notes=notes)


def say_data(line: str, *, rows_on_stdout: bool = False) -> str:
    """Print the line, on standard error where standard output is for rows, and return it.

    With several processes, only the first one prints.
    """
    if is_first_process():
        say(line, error=rows_on_stdout)
    return line


def already(done: int) -> list[str]:
    """What a command that continues an output adds to its line."""
    return [f"{done:,} done already"] if done else []


def first_of(limit: int, count: int) -> list[str]:
    """What a command adds to its line that takes at most `limit` of so many records, all where it is 0."""
    return [f"the first {limit:,} of {count:,}"] if 0 < limit < count else []


def unknown_share(tokenizer: object, rows: Iterable[Iterable[int]]) -> float | None:
    """The share of the unknown word among tokens, start and end apart; None of a vocabulary that can write all text."""
    unknown = getattr(tokenizer, "unk_id", None)
    if unknown is None:
        return None
    marks = {getattr(tokenizer, name, None) for name in ("bos_id", "eos_id", "pad_id")}
    return share_of(unknown, rows, marks)


def share_of(wanted: int | None, rows: Iterable[Iterable[int]], marks: Collection[int | None] = ()) -> float:
    """The share of `wanted` among all tokens but the `marks`; 0 where there is none."""
    found = [token == wanted for row in rows for token in row if token not in marks]
    return sum(found) / len(found) if found else 0.0

"""Cleaning of report text: lossless by default, and the lossy cleaning of earlier work by name.

The lossy cleaning removes decimal points, comparisons and de-identification marks, as in published tables. It belongs
to the data sets of those tables; `chosen_cleaning` does not apply it to other reports.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

# Characters that show nothing and split a word or a number in two for a tokenizer: byte order mark,
# zero-width space, word joiner, soft hyphen. (Zero-width joiners shape letters in some scripts and stay.)
_INVISIBLE = dict.fromkeys(map(ord, "\ufeff\u200b\u2060\u00ad"))
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")

_R2GEN_QUOTES_AND_SLASHES = str.maketrans("", "", "\"'/\\")
_R2GEN_PUNCTUATION = str.maketrans("", "", ".,?;*!%^&_+():<=>@[]{}")


Lossy = Literal["r2gen-iu", "r2gen-mimic"]
CleaningName = Literal["lossless", "iu-xray", "mimic-cxr", "r2gen-iu", "r2gen-mimic"]


class _DataSet(NamedTuple):
    """A data set with published tables: their cleaning, the layouts in which it comes, and what its ids look like."""

    cleaning: Lossy
    layouts: tuple[str, ...]
    ids: re.Pattern[str]


DATA_SETS: dict[str, _DataSet] = {
    "iu-xray": _DataSet("r2gen-iu", ("annotation", "openi", "prepared"), re.compile(r"CXR\d+(?:_.*)?")),
    "mimic-cxr": _DataSet(
        "r2gen-mimic",
        ("annotation", "mimic", "prepared"),
        re.compile(r"s\d{8}|[0-9a-f]{8}(?:-[0-9a-f]{8}){4}"),  # of a study, and of an image as R2Gen has them
    ),
}
_NUMBER = re.compile(r"\d+(?:[.,:/]\d+)*")
_LIST_NUMBER = re.compile(r"(?:(?<=\.)|(?<=\n)|^)\s*\d\.(?=\s)")


def chosen_cleaning(name: str, layout: str, ids: Iterable[str] = ()) -> str:
    """The cleaning that `name` stands for: itself, or that of a data set's tables where the reports are that data set.

    They are where the layout is one of its own and every id looks like its ids, and where they are drawn. Reports of a
    user's own are left lossless.
    """
    if name not in DATA_SETS:
        return name
    published = DATA_SETS[name]
    own = layout in published.layouts and all(published.ids.fullmatch(id) for id in ids)
    return published.cleaning if own or layout == "phantom" else "lossless"


def altered_number(report: str, cleaned: str) -> str:
    """A number of a report that its cleaned form lacks, such as "2.5" of "25 cm"; "" where it has all of them.

    Numbers of a list ("1. ") do not count.
    """
    left = Counter(_NUMBER.findall(cleaned))
    left.subtract(_NUMBER.findall(_LIST_NUMBER.sub("", report)))
    return next((number for number, count in left.items() if count < 0), "")


def without_invisible(text: str) -> str:
    """The text without byte order marks and other characters that show nothing."""
    return text.translate(_INVISIBLE)


def clean_report(text: str) -> str:
    """The same report with regular white space and Unicode form; no visible character is changed.

    Composed form (NFC, so that full-width and superscript characters stay themselves), one space between
    words, one newline between lines, no blank lines, no control or invisible characters. Decimals,
    laterality, negation, units, case and the de-identification mark XXXX come out as they went in. A second
    pass changes nothing more.
    """
    visible = _CONTROL.sub(" ", without_invisible(text))
    lines = (" ".join(line.split()) for line in unicodedata.normalize("NFC", visible).splitlines())
    return "\n".join(line for line in lines if line)


def r2gen_clean_iu(report: str) -> str:
    """R2Gen's cleaning of IU X-ray reports, lossy, only for comparison with scores published on it.

    Lower-cases, drops list numbers, makes sentences of what ". " separates, joins them by " . " and deletes
    punctuation, so "2.5 cm" becomes "25 cm" and "consolidation/effusion" one word.
    """
    return _r2gen_sentences(_halved(report, ".", 3))


def r2gen_clean_mimic(report: str) -> str:
    """R2Gen's cleaning of MIMIC-CXR reports: as for IU X-ray, after newlines and runs of spaces became one space.

    The "___" of de-identification goes with the punctuation. As published, runs of more than 64 spaces or 256 full
    stops are only shortened.
    """
    one_line = _halved(_halved(report.replace("\n", " "), "_", 7), " ", 6)
    return _r2gen_sentences(_halved(one_line, ".", 8))


def _halved(text: str, character: str, times: int) -> str:
    """Two of a character become one, as often as R2Gen writes it down."""
    for _ in range(times):
        text = text.replace(2 * character, character)
    return text


def _r2gen_sentences(report: str) -> str:
    report = report.replace("1. ", "")
    for before in (". ", " "):
        for number in "2345":
            report = report.replace(f"{before}{number}. ", ". ")
    sentences = report.strip().lower().split(". ")
    kept = (
        sentence.translate(_R2GEN_QUOTES_AND_SLASHES).strip().translate(_R2GEN_PUNCTUATION) for sentence in sentences
    )
    return " . ".join(kept) + " ."


CLEANING: dict[str, Callable[[str], str]] = {
    "lossless": clean_report,
    "r2gen-iu": r2gen_clean_iu,
    "r2gen-mimic": r2gen_clean_mimic,
}

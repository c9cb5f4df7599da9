"""Identifiers of people in reports, before these are written or sent: counts by kind, never the text.

Numbers and dates are found by the recognizers of presidio-analyzer (which rest on phonenumbers, Google's
libphonenumber), Chinese identity numbers by their check digit and birth date (python-stdnum). What those lack is
written as further patterns: dates with names of months or in Chinese, numbers behind a label, ages over 89 (45 CFR
164.514(b)(2), HIPAA's list), and names that a title or a label announces. Other names need a model of language: where
spaCy's for English or Chinese is installed, what it takes for a person counts as well.

Marks that stand in the place of an identifier (`___`, `XXXX`, `[**2101-3-4**]`) are none.
"""

import contextlib
import functools
import importlib.util
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from common.io.terminal import say
from common.metrics.tokenize import language_of
from common.process.first import is_first_process

INSTALL = "pip install 'medreport-jax[deid]'"
PACKAGES = ("presidio_analyzer", "stdnum")
SURE = 0.4  # presidio's own scores of patterns without context: below are bare numbers, and 3/12 as a month of a year
REGIONS = ("US", "GB", "CN", "DE", "FR", "ES", "IN", "JP")  # whose telephone numbers are known without a country code
PHONE_DIGITS = 7  # that a text must have

Span = tuple[int, int]
Find = Callable[[str], Iterable[Span]]

MARK = re.compile(r"\[\*\*.*?\*\*\]|\bX{2,}\b|_{2,}|\[[A-Z_ ]+\d*\]", re.DOTALL)
# \b of a pattern sees no boundary between 于 and 2019: both are characters of words.
JOINED = re.compile(r"(?<=[\u2e80-\uffef])(?=[A-Za-z0-9])|(?<=[A-Za-z0-9])(?=[\u2e80-\uffef])")
MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)"
)
CAPITALIZED = r"[A-Z][a-z][\w'’-]*"
NAME = rf"(?:[A-Z]\.\s*)*{CAPITALIZED}"
HAN = r"(?!\S{0,3}[某×])[\u4e00-\u9fff·]{2,4}"
PATTERNS: Mapping[str, Sequence[str]] = {
    "name": (
        rf"\b(?:Drs?|Mr|Mrs|Prof)\.?\s+{NAME}",
        rf"\bMs\.\s+{NAME}",
        r"\b(?:BY|WITH|TO|FROM|PER)\s+DR\.?\s+[A-Z]{2,}\b",  # DR alone is diabetic retinopathy
        rf"\b{CAPITALIZED},?\s+M\.?D\b",
        rf"\b(?i:(?:patient(?:'s)?\s+)?name|physician|radiologist|attending|(?:dictated|signed|reported)\s+by)\s*:\s*{NAME}",
        rf"(?:姓\s*名|[医技]\s*[师生]|签名|报告人|审核人|检查者|报告者|审核者)\s*[:：]\s*{HAN}",
    ),
    "date": (
        rf"(?i)\b{MONTH}\.?,?\s+(?:\d{{1,2}}(?:st|nd|rd|th)?,?\s+)?(?:19|20)\d\d\b",
        rf"(?i)\b\d{{1,2}}(?:st|nd|rd|th)?(?:\s+of)?\s+{MONTH}\.?,?\s+\d{{4}}\b",
        r"\d{4}\s*年\s*\d{1,2}\s*月(?:\s*\d{1,2}\s*[日号])?",
        r"(?<!\d)\d{1,2}\s*月\s*\d{1,2}\s*[日号]",
    ),
    "record number": (
        r"(?i)\b(?:MRN|medical\s+record|patient\s+id|accession|hospital|encounter|account|visit)"
        r"(?:\s*(?:no\.?|number|num|id|#))?\s*[:#]?\s*[A-Z]{0,3}-?\d{5,}",
        r"(?:病历|病案|住院|门诊|就诊|检查|影像|登记|医保|条码)\s*[号码]+\s*[:：]?\s*[A-Za-z]{0,3}-?\d{3,}",
    ),
    "age over 89": (
        r"(?i)\b(?:9\d|1[01]\d)[\s-]*(?:years?|yrs?|y)[\s./-]*(?:old|o)\b",
        r"(?<!\d)(?:9\d|1[01]\d)\s*岁",
    ),
}
KINDS = ("name", "national number", "record number", "date", "phone number", "email address", "age over 89")


class Identifiers(NamedTuple):
    """How many of `reports` have an identifier (`found`), and how many identifiers there are of each kind."""

    reports: int
    found: int
    kinds: dict[str, int]

    def summary(self, which: str = "reports") -> str:
        """The counts in words."""
        if not self.found:
            return f"no identifiers found in {self.reports:,} {which}"
        kinds = ", ".join(f"{kind}: {count:,}" for kind, count in self.kinds.items() if count)
        return f"{self.found:,} of {self.reports:,} {which} seem to hold identifiers ({kinds})"


def can_check() -> bool:
    """Whether the packages of the extra are installed."""
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


def count_identifiers(texts: Iterable[str]) -> Identifiers:
    """What identifiers the texts seem to have. Needs the packages of the extra (`can_check`)."""
    kinds: Counter[str] = Counter()
    reports = found = 0
    for text in texts:
        own = identifiers_of(text)
        kinds += own
        reports += 1
        found += bool(own)
    return Identifiers(reports, found, {kind: kinds[kind] for kind in KINDS})


def identifiers_of(text: str) -> Counter[str]:
    """How many identifiers of each kind a text seems to have; of those that overlap the first by the order of KINDS."""
    text = JOINED.sub(" ", MARK.sub(" ", text))
    taken: list[Span] = []
    counts: Counter[str] = Counter()
    for kind, find in _finders(language_of(text)):
        for start, end in find(text):
            if all(end <= first or last <= start for first, last in taken):
                taken.append((start, end))
                counts[kind] += 1
    return counts


def warn_of_identifiers(texts: Iterable[str], which: str) -> Identifiers | None:
    """Say in one line on standard error what identifiers texts seem to have, or that they were not checked: then None.

    `which` names them, such as "reports to be written".
    """
    if not can_check():
        _say_once(f"note: {which} are not checked for names, dates and numbers of patients; for that {INSTALL}")
        return None
    found = count_identifiers(texts)
    if found.found:
        _say_once(f"warning: {found.summary(which)}")
    return found


def _say_once(line: str) -> None:
    if is_first_process():
        say(line, error=True)


@functools.cache
def _finders(language: str) -> tuple[tuple[str, Find], ...]:
    """What finds each kind, in the order of KINDS."""
    from presidio_analyzer import PatternRecognizer
    from presidio_analyzer import predefined_recognizers as known

    # As a plain pattern: presidio would fetch a list of top-level domains from the network.
    emails = PatternRecognizer("EMAIL_ADDRESS", patterns=known.EmailRecognizer.PATTERNS)
    numbers = (known.UsSsnRecognizer(), known.NhsRecognizer(), known.UsMbiRecognizer())
    finders: dict[str, list[Find]] = {
        "national number": [_chinese_numbers, *map(_by_presidio, numbers)],
        "phone number": [_phones(known.PhoneRecognizer(supported_regions=REGIONS))],
        "email address": [_by_presidio(emails)],
        "date": [_by_presidio(known.DateRecognizer())],
    }
    for kind, patterns in PATTERNS.items():
        finders.setdefault(kind, [])[:0] = [_by_pattern(re.compile(pattern)) for pattern in patterns]
    if person := _person_model(language):
        finders["name"].append(person)
    return tuple((kind, find) for kind in KINDS for find in finders[kind])


def _by_pattern(pattern: re.Pattern[str]) -> Find:
    return lambda text: (match.span() for match in pattern.finditer(text))


def _by_presidio(recognizer: Any) -> Find:
    def find(text: str) -> Iterator[Span]:
        for found in recognizer.analyze(text, recognizer.supported_entities, None):
            if found.score >= SURE:
                yield found.start, found.end

    return find


def _phones(recognizer: Any) -> Find:
    find = _by_presidio(recognizer)
    return lambda text: find(text) if sum(map(str.isdigit, text)) >= PHONE_DIGITS else ()


def _chinese_numbers(text: str) -> Iterator[Span]:
    from stdnum.cn import ric
    from stdnum.exceptions import ValidationError

    for match in re.finditer(r"(?<!\d)\d{17}[\dXx](?!\d)", text):
        number = match[0].upper()
        with contextlib.suppress(ValidationError):
            ric.get_birth_date(number)
            if ric.calc_check_digit(number) == number[-1]:  # without the region, of which older ones are not listed
                yield match.span()


def _person_model(language: str) -> Find | None:
    """What an installed spaCy model of that language takes for a person."""
    import spacy

    names = sorted(name for name in spacy.util.get_installed_models() if name.startswith(f"{language}_core_"))
    if not names:
        return None
    model = spacy.load(names[0])
    return lambda text: ((one.start_char, one.end_char) for one in model(text).ents if one.label_ == "PERSON")

"""Findings of a fundus examination and the standard report that states them.

A finding belongs to one eye; a finding in both eyes counts as two. The standard report is a bijection:
fixed order of eyes and findings, standard terms only, explicit words for suspected and absent.

    右眼：中度非增生型糖尿病视网膜病变；硬性渗出（黄斑区）；可疑黄斑水肿；未见视网膜脱离。左眼：未见明显异常。
    Right eye: enlarged cup-to-disc ratio (C/D 0.7). Left eye: no obvious abnormality.

`Both eyes` stands instead of the two sections where they would be the same.
"""

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from common.data.records import Language
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import KINDS

Eye = Literal["right", "left"]
Status = Literal["present", "suspected", "absent"]
Severity = Literal["mild", "moderate", "severe"]

EYES: tuple[Eye, ...] = ("right", "left")
STATUSES: tuple[Status, ...] = ("present", "suspected", "absent")
SEVERITIES: tuple[Severity, ...] = ("mild", "moderate", "severe")

# Sites by group; a term names the groups that make sense for it.
SITE_GROUPS = MappingProxyType(
    {
        "quadrant": ("superotemporal", "inferotemporal", "superonasal", "inferonasal"),
        "temporal": ("superotemporal", "inferotemporal"),
        "region": ("macula", "posterior_pole", "mid_periphery"),
    }
)


@dataclass(frozen=True)
class Finding:
    """One statement about one eye. `site` is a name in SITE_GROUPS, `ratio` the cup-to-disc ratio in tenths."""

    eye: Eye
    term: str
    status: Status = "present"
    severity: Severity | None = None
    site: str | None = None
    ratio: int | None = None


@dataclass(frozen=True)
class FundusStudy:
    """The findings of one examination, in the order of `order_findings`. An eye without any is not reported."""

    findings: tuple[Finding, ...]

    def of_eye(self, eye: Eye) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.eye == eye)

    @property
    def eyes(self) -> tuple[Eye, ...]:
        return tuple(eye for eye in EYES if self.of_eye(eye))


@dataclass(frozen=True)
class ParsedReport:
    """What a report in standard form says, and the parts of it that are not in standard form."""

    findings: tuple[Finding, ...]
    unparsed: tuple[str, ...]


@dataclass(frozen=True)
class StandardForm:
    """The fixed words of a language."""

    eyes: dict[str, str]
    statuses: dict[Status, str]
    severities: dict[Severity, str]
    sites: dict[str, str]
    detail: str
    colon: str
    semicolon: str
    stop: str


FORMS: dict[Language, StandardForm] = {
    "zh": StandardForm(
        eyes={"both": "双眼", "right": "右眼", "left": "左眼"},
        statuses={"present": "", "suspected": "可疑", "absent": "未见"},
        severities={"mild": "轻度", "moderate": "中度", "severe": "重度"},
        sites={
            "superotemporal": "颞上",
            "inferotemporal": "颞下",
            "superonasal": "鼻上",
            "inferonasal": "鼻下",
            "macula": "黄斑区",
            "posterior_pole": "后极部",
            "mid_periphery": "中周部",
        },
        detail="（{}）",
        colon="：",
        semicolon="；",
        stop="。",
    ),
    "en": StandardForm(
        eyes={"both": "Both eyes", "right": "Right eye", "left": "Left eye"},
        statuses={"present": "", "suspected": "suspected ", "absent": "no "},
        severities={"mild": "mild ", "moderate": "moderate ", "severe": "severe "},
        sites={
            "superotemporal": "superotemporal",
            "inferotemporal": "inferotemporal",
            "superonasal": "superonasal",
            "inferonasal": "inferonasal",
            "macula": "macula",
            "posterior_pole": "posterior pole",
            "mid_periphery": "mid-periphery",
        },
        detail=" ({})",
        colon=": ",
        semicolon="; ",
        stop=". ",
    ),
}


def order_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Standard order without repeats: eye; present, suspected, absent; category; order in the terminology."""
    return tuple(sorted(dict.fromkeys(findings), key=_order_key))


def standard_report(study: FundusStudy, language: Language) -> str:
    """The standard report of a study."""
    form = FORMS[language]
    sections: dict[str, str] = {eye: _section(study, eye, language) for eye in study.eyes}
    if len(sections) == 2 and sections["right"] == sections["left"]:
        sections = {"both": sections["right"]}
    return "".join(f"{form.eyes[eye]}{form.colon}{text}{form.stop}" for eye, text in sections.items()).rstrip()


def standard_phrase(finding: Finding, language: Language) -> str:
    """A finding in standard words, without its eye."""
    form = FORMS[language]
    severity = form.severities[finding.severity] if finding.severity else ""
    details = [form.sites[finding.site]] if finding.site else []
    if finding.ratio:
        details.append(f"C/D 0.{finding.ratio}")
    suffix = "".join(form.detail.format(detail) for detail in details)
    return f"{form.statuses[finding.status]}{severity}{load_terminology().by_id[finding.term].name(language)}{suffix}"


def parse_standard_report(text: str, language: Language) -> ParsedReport:
    """The inverse of `standard_report`, tolerant of the width of punctuation and of letter case.

    Never raises: text that is not in standard form comes back in `unparsed`, in order.
    """
    form = FORMS[language]
    eyes: dict[str, tuple[Eye, ...]] = {
        name.lower(): tuple(eye for eye in EYES if key == eye or key == "both") for key, name in form.eyes.items()
    }
    findings: list[Finding] = []
    unparsed: list[str] = []
    section: tuple[Eye, ...] = ()
    for part in re.split(r"[;。\n]|\.(?!\d)", text.translate(_HALF_WIDTH)):
        head, colon, body = part.partition(":")
        if colon and head.strip().lower() in eyes:
            section, part = eyes[head.strip().lower()], body
        phrase = part.strip()
        if not phrase:
            continue
        finding = _parse_phrase(phrase, language)
        if finding and section:
            findings += [replace(finding, eye=eye) for eye in section]
        else:
            unparsed.append(phrase)
    return ParsedReport(order_findings(findings), tuple(unparsed))


_HALF_WIDTH = str.maketrans({"：": ":", "；": ";", "（": "(", "）": ")", "，": ","})


def _section(study: FundusStudy, eye: Eye, language: Language) -> str:
    return FORMS[language].semicolon.join(standard_phrase(finding, language) for finding in study.of_eye(eye))


def _order_key(finding: Finding) -> tuple[int, int, int, int]:
    category, index = _term_order()[finding.term]
    return EYES.index(finding.eye), STATUSES.index(finding.status), category, index


@functools.cache
def _term_order() -> dict[str, tuple[int, int]]:
    terms = load_terminology().terms
    return {term.id: (KINDS.index(term.kind), index) for index, term in enumerate(terms)}


@functools.cache
def _terms_by_name(language: Language) -> dict[str, str]:
    return {term.name(language).lower(): term.id for term in load_terminology().terms}


def _parse_phrase(phrase: str, language: Language) -> Finding | None:
    """The finding that a phrase states (its eye is a placeholder), None where it is no standard phrase."""
    form = FORMS[language]
    terms = _terms_by_name(language)
    name, bracket, detail = phrase.lower().partition("(")
    name = name.strip()
    status: Status = "present"
    # "未见明显异常" is a name that begins with a status word: names go first.
    if name not in terms:
        status = next((s for s in STATUSES if form.statuses[s] and name.startswith(form.statuses[s])), "present")
        name = name.removeprefix(form.statuses[status]).strip()
    severity = None
    if name not in terms:
        severity = next((s for s in SEVERITIES if name.startswith(form.severities[s])), None)
        name = name.removeprefix(form.severities[severity]).strip() if severity else name
    term = load_terminology().by_id.get(terms.get(name, ""))
    if term is None or (severity and "severity" not in term.modifiers):
        return None
    finding = Finding("right", term.id, status, severity)
    if not bracket:
        return finding
    detail = detail.removesuffix(")").strip()
    sites = {form.sites[site]: site for group in term.modifiers for site in SITE_GROUPS.get(group, ())}
    if detail in sites:
        return replace(finding, site=sites[detail])
    ratio = re.fullmatch(r"c/d 0\.([1-9])", detail)
    if ratio and "ratio" in term.modifiers:
        return replace(finding, ratio=int(ratio.group(1)))
    return None

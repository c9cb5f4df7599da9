"""The page that rewrites a fundus report in standard form: what changed, and whether each statement was kept."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from common.data.cleaning import clean_report
from common.errors import UserError
from common.report.differences import differences
from launch.app.forms import Form
from launch.app.models import Models
from retsta_jax.expected import expected_texts
from retsta_jax.readable import unusable
from retsta_jax.reports import pair_language
from retsta_jax.standardize import standardize
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.matching import Match, find_terms, statements_of
from retsta_jax.terminology.terms import SHIPPED, Terminology

EXAMPLES = (
    ("Both eyes", "both eyes: hypertensive retinopathy, AV nicking; no papilledema"),
    ("糖尿病视网膜病变", "右眼，视网膜微动脉瘤，黄白色硬渗，未见黄斑水肿。左眼，玻璃膜疣，疑似青光眼"),
    ("Prose", "Right eye demonstrates drusen at the macula, no haemorrhage. Left eye: normal fundus."),
    ("静脉阻塞", "右眼CRVO，黄斑水肿，未见视盘新生血管；左眼未见明显异常"),
    ("近视", "双眼近视弧形斑。左眼视网膜裂孔，未见视网膜脱离"),
    ("Abbreviations, one lost", "RE: PDR, VH, laser scars, no RD. LE: moderate NPDR, MAs"),
    ("Misspelt, two wrong", "LE: CRVO with flame hemorrages and macular oedma, no NVD seen"),
)  # the last two are not standardized well by the shipped model
EYES = {"right": "right eye", "left": "left eye", "": "eye not named"}
CODES = {"icd11": "ICD-11 ", "icd10": "ICD-10 ", "hpo": "", "doid": ""}  # the last two name themselves


class Run(NamedTuple):
    """Some text of a report, and the term that it mentions."""

    text: str
    match: Match | None = None
    about: str = ""


class Line(NamedTuple):
    """What is stated of a term and an eye before and after: "present", "suspected", "absent", or nothing."""

    name: str
    codes: str
    eye: str
    before: str
    after: str

    @property
    def fate(self) -> str:
        """What became of the statement."""
        if self.before == self.after:
            return "kept"
        return "lost" if not self.after else "added" if not self.before else "changed"


def blank(models: Models) -> dict[str, Any]:
    """The page before a report is given."""
    return {"examples": EXAMPLES, "own": models.sources.retsta is not None, "text": "", "result": None}


def answer(models: Models, form: Form) -> dict[str, Any]:
    """The page with the standard form of a report. Raises UserError for a report that has none."""
    text = chosen_text(form)
    if not clean_report(text):
        raise UserError("There is no report yet: paste one, or choose an example.")
    trained = models.retsta
    if reason := unusable(trained.encoder, [text])[0]:
        raise UserError(f"The report cannot be standardized: {reason}.")
    (found,) = standardize(trained, trained.variables, [text], batch_size=1, ids=["pasted"])
    terms = load_terminology(trained.config.data.terminology or SHIPPED)
    language = pair_language(text, found.text)
    before, after = find_terms(text, terms, language), find_terms(found.text, terms, language)
    rules = expected_texts(text, terms)[-1:] if terms is load_terminology() else []
    lines = statement_lines(before, after, terms)
    return {
        **blank(models),
        "text": text,
        "result": {
            "source": marked(text, before, terms),
            "standard": marked(found.text, after, terms),
            "changes": differences(text, found.text),
            "complete": found.complete,
            "lines": lines,
            "kept": sum(line.fate == "kept" for line in lines),
            "language": language,
            "rules": "".join(rules),
        },
    }


def chosen_text(form: Form) -> str:
    """The report of an example where one was chosen, otherwise the pasted one."""
    number = form.text("example")
    if number.isdecimal() and int(number) < len(EXAMPLES):
        return EXAMPLES[int(number)][1]
    return form.text("text")


def marked(text: str, matches: Sequence[Match], terms: Terminology) -> list[Run]:
    """A report in runs, those of terms with their match."""
    runs, done = [], 0
    for match in sorted(matches, key=lambda match: (match.start, -match.end)):
        if match.start < done:
            continue
        runs += [Run(text[done : match.start]), Run(text[match.start : match.end], match, about(match, terms))]
        done = match.end
    return [run for run in [*runs, Run(text[done:])] if run.text]


def about(match: Match, terms: Terminology) -> str:
    """A term in one line: its standard name, what is said of it, its codes."""
    term = terms.by_id[match.term]
    eye = {"both": "both eyes", "right": "right eye", "left": "left eye"}.get(match.eye or "", "")
    status = match.status if term.states else ""
    return " · ".join(filter(None, (match.name, eye, status, codes_of(match.term, terms))))


@functools.lru_cache(maxsize=4096)
def codes_of(term: str, terms: Terminology) -> str:
    """The codes of a term, such as "ICD-11 9B71.0"."""
    return " · ".join(f"{CODES[name]}{code}" for name, code in terms.by_id[term].codes if name in CODES)


def statement_lines(before: Sequence[Match], after: Sequence[Match], terms: Terminology) -> list[Line]:
    """Each statement of either side, the right eye first; what is kept comes before what is not."""
    names = {match.term: match.name for match in [*before, *after]}
    said = [{(one.eye, one.term): one.status for one in statements_of(side, terms)} for side in (before, after)]
    keys = dict.fromkeys([*said[0], *said[1]])
    lines = [
        Line(names[term], codes_of(term, terms), EYES[eye], *(side.get((eye, term), "") for side in said))
        for eye, term in keys
    ]
    order, fates = list(EYES.values()), ("kept", "changed", "lost", "added")
    return sorted(lines, key=lambda line: (fates.index(line.fate), order.index(line.eye), line.name))

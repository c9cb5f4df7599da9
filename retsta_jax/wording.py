"""Free-text fundus reports as clinics write them: a study in, a messy original out.

The wording varies in synonyms, abbreviations, order, sentences about both eyes, joint denials and hedges, and
text that says nothing; `noise` adds typos, odd punctuation, mixed widths and storage artefacts. Each original still
has one standard report: typos spare the words of laterality, degree and denial, and a finding that is there is
given a verb when it follows a denial or a hedge, so that "no haemorrhage, drusen" never occurs.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from common.data.records import Language
from retsta_jax.findings import EYES, Finding, FundusStudy
from retsta_jax.phrases import PHRASES
from retsta_jax.studies import choose
from retsta_jax.terminology import load_terminology
from retsta_jax.typos import misspell

STANDARD_NAME_SHARE = 0.25  # of the mentions of a term; the rest are synonyms

_HALF_WIDTH = str.maketrans("，。：；（）？、", ",.:;()?,")
_FULL_WIDTH_LETTERS = str.maketrans(
    {chr(code): chr(code + 0xFEE0) for code in range(ord("0"), ord("z") + 1) if chr(code).isalnum()}
)


def original_report(study: FundusStudy, language: Language, rng: np.random.Generator, noise: float = 0.5) -> str:
    """A free-text report of the study. noise: 0 (clean, varied wording) to 1 (hardly a line without a fault)."""
    phrases = PHRASES[language]
    sentences = _sentences(study, language, rng, noise)
    if rng.random() < 0.1 + 0.4 * noise:
        sentences.insert(0, choose(rng, _openings(study, language)))
    if rng.random() < 0.1 + 0.4 * noise:
        sentences.append(choose(rng, phrases.closings))
    text = sentences[0]
    for sentence in sentences[1:]:
        stop = choose(rng, phrases.odd_stops) if rng.random() < 0.4 * noise else phrases.stop
        text += stop + sentence
    if rng.random() > 0.5 * noise:
        text += phrases.stop.strip()
    return _store(text, language, rng, noise)


def _openings(study: FundusStudy, language: Language) -> tuple[str, ...]:
    phrases = PHRASES[language]
    unclear = any(load_terminology().by_id[finding.term].kind == "quality" for finding in study.findings)
    return phrases.openings if unclear else phrases.openings + phrases.clear_images


def _sentences(study: FundusStudy, language: Language, rng: np.random.Generator, noise: float) -> list[str]:
    """What the report says, a sentence for each eye, for both eyes, or for each finding."""
    by_eye = {eye: [replace(f, eye="right") for f in study.of_eye(eye)] for eye in study.eyes}
    sections: list[tuple[str, list[Finding]]] = list(by_eye.items())
    layout = rng.random()
    if len(by_eye) == 2 and layout < 0.8:
        shared = [finding for finding in by_eye["right"] if finding in by_eye["left"]]
        own = [(eye, [finding for finding in by_eye[eye] if finding not in shared]) for eye in EYES]
        if shared == by_eye["right"] == by_eye["left"] and layout < 0.12:
            return _same_as_other(shared, language, rng, noise)
        sections = [(eye, findings) for eye, findings in [("both", shared), *own] if findings]
    if rng.random() < 0.3:
        sections = [sections[place] for place in rng.permutation(len(sections))]
    if rng.random() < 0.2:
        return _itemised(sections, language, rng, noise)
    return [_labelled(eye, _clauses(findings, language, rng, noise), language, rng) for eye, findings in sections]


def _same_as_other(
    findings: Sequence[Finding], language: Language, rng: np.random.Generator, noise: float
) -> list[str]:
    """One eye in full, and the other eye said to be the same."""
    phrases = PHRASES[language]
    eye, other = (EYES[0], EYES[1]) if rng.random() < 0.7 else (EYES[1], EYES[0])
    names = {"eye": choose(rng, phrases.eyes[eye]), "other": choose(rng, phrases.eyes[other])}
    described = _labelled(eye, _clauses(findings, language, rng, noise), language, rng)
    return [described, choose(rng, phrases.same_as).format(**names)]


def _itemised(
    sections: Sequence[tuple[str, list[Finding]]], language: Language, rng: np.random.Generator, noise: float
) -> list[str]:
    """Every finding with its own eye, before or after it, in any order."""
    items = [(eye, finding) for eye, findings in sections for finding in findings]
    after = rng.random() < 0.5
    texts = []
    for place in rng.permutation(len(items)):
        eye, finding = items[place]
        clause = _clause(finding, language, rng, noise)
        if after:
            label = choose(rng, PHRASES[language].eyes[eye])
            texts.append(choose(rng, PHRASES[language].eye_suffix).format(clause, label))
        else:
            texts.append(_labelled(eye, clause, language, rng))
    return texts


def _labelled(eye: str, text: str, language: Language, rng: np.random.Generator) -> str:
    label = choose(rng, PHRASES[language].eyes[eye])
    joint = choose(rng, PHRASES[language].eye_joints)
    if language == "zh" and not label.isascii() and rng.random() < 0.4:
        joint = ""
    return (label + joint + text).replace("眼底眼底", "眼底")


def _clauses(findings: Sequence[Finding], language: Language, rng: np.random.Generator, noise: float) -> str:
    """The findings of one eye as one run of text."""
    if rng.random() < 0.5:
        findings = [findings[place] for place in rng.permutation(len(findings))]
    text = ""
    last: Finding | None = None
    for run in _runs(findings, rng):
        if len(run) > 1:
            clause = _joint_clause(run, language, rng, noise)
        else:
            verb = last is not None and last.status != "present"
            clause = _clause(run[0], language, rng, noise, verb)
        text += clause if last is None else _comma(last, run[0], language, rng, noise) + clause
        last = run[-1]
    return text


def _runs(findings: Sequence[Finding], rng: np.random.Generator) -> list[list[Finding]]:
    """The findings one by one, but neighbours that are denied or suspected often together."""
    runs: list[list[Finding]] = []
    for status, group in itertools.groupby(findings, key=lambda finding: finding.status):
        run = list(group)
        plain = not any(_has_modifier(finding) for finding in run)
        together = plain and rng.random() < {"present": 0.0, "suspected": 0.3, "absent": 0.75}[status]
        runs += [run] if together else [[finding] for finding in run]
    return runs


def _comma(left: Finding, right: Finding, language: Language, rng: np.random.Generator, noise: float) -> str:
    """What stands between two findings; it may go missing only where nothing on its left could reach across."""
    phrases = PHRASES[language]
    if rng.random() >= 0.4 * noise:
        return phrases.comma
    if left.status == right.status == "present" and not _has_modifier(left):
        return choose(rng, phrases.odd_commas)
    return choose(rng, (",", "；", ", ", "; "))


def _has_modifier(finding: Finding) -> bool:
    return bool(finding.severity or finding.site or finding.ratio)


def _joint_clause(run: Sequence[Finding], language: Language, rng: np.random.Generator, noise: float) -> str:
    phrases = PHRASES[language]
    status = run[0].status
    names = [_description(finding, language, rng, noise) for finding in run]
    joined = phrases.list_comma.join(names[:-1]) + choose(rng, phrases.conjunctions[status]) + names[-1]
    return choose(rng, phrases.listed_absent if status == "absent" else phrases.listed_suspected).format(joined)


def _clause(finding: Finding, language: Language, rng: np.random.Generator, noise: float, verb: bool = False) -> str:
    """A finding with its status. verb: a present finding must say that it is there."""
    phrases = PHRASES[language]
    description = _description(finding, language, rng, noise)
    if finding.status == "absent":
        return choose(rng, phrases.absent).format(description)
    if finding.status == "suspected":
        return choose(rng, phrases.suspected).format(description)
    category = load_terminology().by_id[finding.term].kind
    if (verb and category != "normal") or (category in ("diagnosis", "sign") and rng.random() < 0.25):
        return choose(rng, phrases.verb_present).format(description)
    return description


def _description(finding: Finding, language: Language, rng: np.random.Generator, noise: float) -> str:
    """The term under one of its names, with severity, site and ratio."""
    phrases = PHRASES[language]
    term = load_terminology().by_id[finding.term]
    standard = rng.random() < STANDARD_NAME_SHARE
    name = term.name(language) if standard else choose(rng, term.synonyms(language))
    if rng.random() < 0.35 * noise:
        name = misspell(name, language, rng)
    if finding.severity:
        severity = choose(rng, phrases.severities[finding.severity])
        name = choose(rng, phrases.severity_forms).format(severity=severity, name=name)
    if finding.site and rng.random() < 0.6:
        site = choose(rng, phrases.site_adjectives[finding.site])
        name = choose(rng, phrases.site_before).format(site=site, name=name)
    elif finding.site:
        site = choose(rng, phrases.site_nouns[finding.site])
        name = choose(rng, phrases.site_after).format(site=site, name=name)
    if finding.ratio:
        name = choose(rng, phrases.ratio).format(name=name, ratio=f"0.{finding.ratio}")
    return name


def _store(text: str, language: Language, rng: np.random.Generator, noise: float) -> str:
    """What input methods and storage do to a whole text: width of characters, letter case."""
    draw = rng.random()
    if language == "zh":
        if draw < 0.2 * noise:
            return text.translate(_HALF_WIDTH)
        if draw < 0.3 * noise:
            return "".join(c.translate(_HALF_WIDTH) if rng.random() < 0.5 else c for c in text)
        if draw < 0.4 * noise:
            return text.translate(_FULL_WIDTH_LETTERS)
        return text
    if draw < 0.2 * noise:
        return text.lower()
    if draw < 0.25 * noise:
        return text.upper()
    if draw < 0.3 * noise:
        return re.sub(r", ", "，", text)
    return text

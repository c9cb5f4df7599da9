"""Free-text fundus reports as clinicians write them: from a study and a style to a messy original.

A style determines layout, names, order, joint denials and hedges, run-ons and remarks without findings; `noise` adds
typos, odd punctuation, mixed widths and storage artefacts. Each original still has one standard report: typos spare the
words of laterality, degree and denial, and a finding that is there is given a verb when it follows a denial or a hedge,
so that "no haemorrhage, drusen" never occurs.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np

from common.data.records import Language
from retsta_jax.corpus.findings import EYES, Finding, FundusStudy
from retsta_jax.corpus.fundus import choose
from retsta_jax.corpus.phrases import Phrases
from retsta_jax.corpus.remarks import figures, mentionable
from retsta_jax.corpus.style import Style
from retsta_jax.corpus.styles import styles_of
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.search import WORDS, fold, mentions
from retsta_jax.terminology.terms import QUALIFIERS, Term
from retsta_jax.terminology.typos import misspell

Item = TypeVar("Item")

ATTEMPTS = 8  # to word a clause so that its words together are not the name of another finding
COMMA: dict[Language, str] = {"zh": "，", "en": ", "}
COLON: dict[Language, str] = {"zh": "：", "en": ": "}
FULL_STOP: dict[Language, str] = {"zh": "。", "en": "."}

_HALF_WIDTH = str.maketrans("，。：；（）？", ",.:;()?")
# Short for a finding, a word in other letter case: "HE", "DR", "ME".
_WORDS = re.compile(r"\b(?:" + "|".join(WORDS).upper() + r")\b")
_FULL_WIDTH_LETTERS = str.maketrans(
    {chr(code): chr(code + 0xFEE0) for code in range(ord("0"), ord("z") + 1) if chr(code).isalnum()}
)


class Hand(NamedTuple):
    """A style as one report is written in it: what an author does not change from line to line."""

    language: Language
    style: Style
    noise: float
    rng: np.random.Generator
    labels: dict[str, str]  # of the eyes
    joint: str  # behind a label
    stop: str  # between sentences

    @property
    def phrases(self) -> Phrases:
        return self.style.phrases

    def draws(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)


def original_report(
    study: FundusStudy, language: Language, rng: np.random.Generator, noise: float = 0.5, style: Style | None = None
) -> str:
    """A free-text report of the study. noise: 0 (clean, varied wording) to 1 (hardly a line without a fault).

    `style` is one of `styles_of(language)`; where it is not given, any of them.
    """
    style = style or choose(rng, styles_of(language))
    index = int(rng.integers(len(style.phrases.eyes["both"])))
    hand = Hand(
        language, style, noise, rng,
        labels={eye: names[index] for eye, names in style.phrases.eyes.items()},
        joint=choose(rng, style.phrases.eye_joints),
        stop=choose(rng, style.phrases.stops),
    )  # fmt: skip
    before, behind = _remarks(study, hand)
    text = _joined(_sentences(study, hand), hand)
    # What runs on within the findings does not run on into them.
    apart = hand.stop if hand.stop.strip(" ,，") else "\n"
    text = apart.join([*before, text, *behind])
    if hand.draws(style.final_stop * (1 - 0.5 * noise)):
        text += FULL_STOP[language]
    return _store(text, hand)


def _remarks(study: FundusStudy, hand: Hand) -> tuple[list[str], list[str]]:
    """What stands before and behind the findings and states none."""
    phrases, rng = hand.phrases, hand.rng
    unclear = any(load_terminology().by_id[finding.term].kind == "quality" for finding in study.findings)
    before: list[str] = []
    behind: list[str] = []
    if hand.draws(hand.style.remarks + 0.3 * hand.noise):
        before.append(choose(rng, phrases.openings if unclear else phrases.openings + phrases.clear_images))
    if hand.draws(hand.style.remarks + 0.15 * hand.noise):
        choose(rng, (before, behind)).append(choose(rng, phrases.figures).format(**figures(rng, hand.language)))
    kinds = [kind for kind in QUALIFIERS if mentionable(kind)]
    if hand.draws(hand.style.remarks) and kinds and not unclear:
        kind = choose(rng, kinds)
        drawn = [choose(rng, mentionable(kind)) for _ in range(int(rng.integers(1, 4)))]
        named = dict.fromkeys(drawn)  # not a set: its order differs between processes, and names are drawn in it
        names = sorted(_name(term, hand) for term in named)
        listed = (phrases.list_comma or ", ").join(names)
        choose(rng, (before, behind)).append(choose(rng, phrases.mentions[kind]).format(listed))
    if hand.draws(hand.style.remarks + 0.3 * hand.noise):
        behind.append(choose(rng, phrases.closings))
    return before, behind


def _joined(sentences: Sequence[str], hand: Hand) -> str:
    if hand.draws(hand.style.numbered):
        form = choose(hand.rng, hand.phrases.numbers)
        sentences = [form.format(number) + sentence for number, sentence in enumerate(sentences, start=1)]
    text = sentences[0]
    for sentence in sentences[1:]:
        odd = hand.draws(0.4 * hand.noise) and "\n" not in text  # a list keeps its lines
        text += (choose(hand.rng, hand.phrases.odd_stops) if odd else hand.stop) + sentence
    return text


def _sentences(study: FundusStudy, hand: Hand) -> list[str]:
    """What the report says, a sentence for each eye, for both eyes, or for each finding."""
    by_eye = {eye: [replace(f, eye="right") for f in study.of_eye(eye)] for eye in study.eyes}
    alike = len(by_eye) == 2 and by_eye["right"] == by_eye["left"]
    if alike and hand.draws(hand.style.same_as):
        return _same_as_other(by_eye["right"], hand)
    grouping = ("eye", "both", "finding")[int(hand.rng.choice(3, p=hand.style.grouping))]
    sections: list[tuple[str, list[Finding]]] = list(by_eye.items())
    if len(by_eye) == 2 and (grouping == "both" or (grouping == "finding" and hand.draws(0.7))):
        shared = [finding for finding in by_eye["right"] if finding in by_eye["left"]]
        own = [(eye, [finding for finding in by_eye[eye] if finding not in shared]) for eye in EYES]
        sections = [(eye, findings) for eye, findings in [("both", shared), *own] if findings]
    if hand.draws(0.15 + hand.style.shuffled / 4):
        sections = _shuffled(sections, hand)
    if grouping == "finding":
        return _itemised(sections, hand)
    if hand.draws(hand.style.bulleted):
        return [_bulleted(eye, findings, hand) for eye, findings in sections]
    return [_labelled(eye, _clauses(findings, hand), hand) for eye, findings in sections]


def _shuffled(items: Sequence[Item], hand: Hand) -> list[Item]:
    return [items[index] for index in hand.rng.permutation(len(items))]


def _same_as_other(findings: Sequence[Finding], hand: Hand) -> list[str]:
    """One eye in full, and the other eye said to be the same."""
    eye, other = (EYES[0], EYES[1]) if hand.draws(0.7) else (EYES[1], EYES[0])
    names = {"eye": hand.labels[eye], "other": hand.labels[other]}
    return [_labelled(eye, _clauses(findings, hand), hand), choose(hand.rng, hand.phrases.same_as).format(**names)]


def _itemised(sections: Sequence[tuple[str, list[Finding]]], hand: Hand) -> list[str]:
    """Every finding with its own eye, before or after it."""
    items = [(eye, finding) for eye, findings in sections for finding in findings]
    if hand.draws(hand.style.shuffled):
        items = _shuffled(items, hand)
    if hand.draws(hand.style.eye_behind):
        suffix = choose(hand.rng, hand.phrases.eye_suffix)
        return [suffix.format(_clause(finding, hand), hand.labels[eye]) for eye, finding in items]
    return [_labelled(eye, _clause(finding, hand), hand) for eye, finding in items]


def _bulleted(eye: str, findings: Sequence[Finding], hand: Hand) -> str:
    """Each finding on a line of its own under its eye."""
    bullet = choose(hand.rng, hand.phrases.bullets)
    lines = [bullet.format(number) + _clause(finding, hand) for number, finding in enumerate(findings, start=1)]
    return "\n".join([(hand.labels[eye] + hand.joint).rstrip(), *lines])


def _labelled(eye: str, text: str, hand: Hand) -> str:
    label, joint = hand.labels[eye], hand.joint
    if label.endswith("眼底") and text.startswith("眼底"):
        label = label.removesuffix("眼底") if joint == "" else label
    elif not joint.strip() and _terms_in(label + joint + text, hand) != _terms_in(text, hand):
        joint = COLON[hand.language]  # 左眼 with 动脉阻塞 has the name 眼动脉阻塞 within it
    return label + joint + text


def _clauses(findings: Sequence[Finding], hand: Hand) -> str:
    """The findings of one eye as one run of text."""
    if hand.draws(hand.style.shuffled):
        findings = _shuffled(findings, hand)
    text = ""
    last: Finding | None = None
    for run in _runs(findings, hand):
        if len(run) > 1:
            clause = _joint_clause(run, hand)
        else:
            needed = last is not None and last.status != "present"
            verb = needed or (last is not None and hand.draws(hand.style.verbs))
            clause = _clause(run[0], hand, verb)
        if last is None:
            text = clause
        elif last.status != run[0].status and hand.draws(hand.style.new_sentence):
            text += hand.stop + clause[:1].upper() + clause[1:]
        else:
            certain = all(finding.status == "present" for finding in findings)
            text = _run_together(text, _comma(last, run[0], hand, certain), clause, hand)
        last = run[-1]
    return text


def _run_together(left: str, joint: str, right: str, hand: Hand) -> str:
    """Two clauses; names do not grow together."""
    if not joint and (left[-1:] + right[:1]).isascii():
        joint = " "
    parts = _terms_in(left, hand) + _terms_in(right, hand)
    if not joint.strip() and _terms_in(left + joint + right, hand) != parts:
        joint = COMMA[hand.language]
    return left + joint + right


def _terms_in(text: str, hand: Hand) -> list[str]:
    """The ids of the findings that a text names, wherever they come from."""
    return [
        mention.term.id
        for mention in mentions(text, fold(text), load_terminology(), hand.language)
        if mention.term.states
    ]


def _runs(findings: Sequence[Finding], hand: Hand) -> list[list[Finding]]:
    """The findings one by one, but neighbours that are denied or suspected often together."""
    runs: list[list[Finding]] = []
    for status, group in itertools.groupby(findings, key=lambda finding: finding.status):
        run = list(group)
        plain = status != "present" and not any(_has_modifier(finding) for finding in run)
        together = plain and hand.draws(hand.style.enumerated * (1.0 if status == "absent" else 0.4))
        runs += [run] if together else [[finding] for finding in run]
    return runs


def _comma(left: Finding, right: Finding, hand: Hand, certain: bool) -> str:
    """What stands between two findings; it may go missing only where nothing on its left could reach across.

    certain: nothing in the section is denied or suspected, so that "no A, B seen and C" does not occur.
    """
    if left.status != "present" and _is_normal(right):  # which takes no verb
        return COMMA[hand.language]
    together = left.status == right.status == "present" and not _has_modifier(left)
    if together and hand.draws(max(hand.style.run_on, 0.4 * hand.noise)):
        odd = [comma for comma in hand.phrases.odd_commas if certain or comma.strip() not in ("and", "+")]
        return choose(hand.rng, odd)
    if hand.draws(0.4 * hand.noise):
        return choose(hand.rng, (",", "；", ", ", "; "))
    return choose(hand.rng, hand.phrases.commas)


def _is_normal(finding: Finding) -> bool:
    return load_terminology().by_id[finding.term].kind == "normal"


def _has_modifier(finding: Finding) -> bool:
    return bool(finding.severity or finding.site or finding.ratio)


def _unmistakable(write: Callable[[], str], findings: Sequence[Finding], hand: Hand) -> str:
    """What `write` gives; anew where its words make the name of another finding, as 无 with 灌注区 does."""
    named = {finding.term for finding in findings}
    clause = write()
    for _ in range(ATTEMPTS):
        if named.issuperset(_terms_in(clause, hand)):
            break
        clause = write()
    return clause


def _joint_clause(run: Sequence[Finding], hand: Hand) -> str:
    """Findings of one status that share its words."""
    return _unmistakable(lambda: _write_joint_clause(run, hand), run, hand)


def _write_joint_clause(run: Sequence[Finding], hand: Hand) -> str:
    phrases, status = hand.phrases, run[0].status
    names = [_description(finding, hand) for finding in run]
    joined = phrases.list_comma.join(names[:-1]) + choose(hand.rng, phrases.conjunctions[status]) + names[-1]
    return choose(hand.rng, phrases.listed_absent if status == "absent" else phrases.listed_suspected).format(joined)


def _clause(finding: Finding, hand: Hand, verb: bool = False) -> str:
    """A finding with its status. verb: a finding that is there says so."""
    return _unmistakable(lambda: _write_clause(finding, hand, verb), [finding], hand)


def _write_clause(finding: Finding, hand: Hand, verb: bool) -> str:
    forms = {"absent": hand.phrases.absent, "suspected": hand.phrases.suspected}.get(finding.status, ())
    if verb and not forms and not _is_normal(finding):
        forms = hand.phrases.verb_present
    description = _description(finding, hand, bool(forms))
    return choose(hand.rng, forms).format(description) if forms else description


def _description(finding: Finding, hand: Hand, embedded: bool = True) -> str:
    """The term under one of its names, with severity, site and ratio; embedded: something is said of all that."""
    phrases, rng = hand.phrases, hand.rng
    name = _name(load_terminology().by_id[finding.term], hand)
    if finding.severity:
        severity = choose(rng, phrases.severities[finding.severity])
        name = choose(rng, phrases.severity_forms).format(severity=severity, name=name)
    if finding.site and hand.draws(0.6):
        site = choose(rng, phrases.site_adjectives[finding.site])
        name = choose(rng, phrases.site_before).format(site=site, name=name)
    elif finding.site:
        site = choose(rng, phrases.site_nouns[finding.site])
        name = choose(rng, _forms(phrases.site_after, embedded)).format(site=site, name=name)
    if finding.ratio:
        name = choose(rng, _forms(phrases.ratio, embedded)).format(name=name, ratio=f"0.{finding.ratio}")
    return name


def _forms(forms: Sequence[str], embedded: bool) -> Sequence[str]:
    """A comma within would end what is said of it all."""
    return [form for form in forms if not embedded or not re.search("[,，]", form)]


def _name(term: Term, hand: Hand) -> str:
    """One of the names of a term: standard, other, short; with noise now and then misspelt."""
    zh = hand.language == "zh"
    synonyms, short, wrong = (
        (term.synonyms_zh, term.abbreviations_zh, term.misspellings_zh)
        if zh
        else (term.synonyms_en, term.abbreviations_en, term.misspellings_en)
    )
    registers = ((term.name(hand.language),), synonyms, short)
    weights = np.array([weight * bool(names) for weight, names in zip(hand.style.names, registers, strict=True)])
    name = choose(hand.rng, registers[int(hand.rng.choice(3, p=weights / weights.sum()))])
    if hand.draws(0.35 * hand.noise):
        return choose(hand.rng, wrong) if wrong and hand.draws(0.3) else misspell(name, hand.language, hand.rng)
    return name


def _store(text: str, hand: Hand) -> str:
    """What input methods and storage do to a whole text: width of characters, letter case."""
    draw, noise, rng = hand.rng.random(), hand.noise, hand.rng
    if hand.style.small_letters:
        text = text.lower()
    if hand.language == "zh":
        if draw < 0.2 * noise:
            return text.translate(_HALF_WIDTH)
        if draw < 0.3 * noise:
            return "".join(c.translate(_HALF_WIDTH) if rng.random() < 0.5 else c for c in text)
        if draw < 0.4 * noise:
            return text.translate(_FULL_WIDTH_LETTERS)
        return text
    if draw < 0.25 * noise and not _WORDS.search(text):
        return text.lower() if draw < 0.2 * noise else text.upper()
    if draw < 0.3 * noise:
        return re.sub(r", ", "，", text)
    return text

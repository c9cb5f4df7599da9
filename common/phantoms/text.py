"""Reports of phantom studies in a radiologist's words, and the CheXpert labels that the words carry.

Labels are by mention, as CheXpert's labeler gives them: a class is positive where the text states it, negative where
it is denied, uncertain where it is hedged and blank where it is not mentioned. The opacity family is no exception:
"consolidation" is Consolidation and not Lung Opacity, "opacity, which may represent pneumonia" is Lung Opacity and an
uncertain Pneumonia, and "the lungs are clear" mentions nothing. No Finding is positive where nothing but support
devices is positive or uncertain, and blank otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int8

from common.metrics.clinical import BLANK, FINDINGS, NEGATIVE, POSITIVE, UNCERTAIN
from common.phantoms.study import Finding, Study, choose
from common.phantoms.words import (
    ADJECTIVES,
    ADVERBS,
    ASIDE,
    CLEAR_LUNGS,
    CONCLUSIONS,
    CONTRADICTED,
    DEGREES,
    DENIALS,
    DENIED,
    HEDGED,
    INTACT_BONES,
    LABEL_OF,
    MAYBE_PNEUMONIA,
    NORMAL_BOTH,
    NORMAL_HEART,
    NORMAL_MEDIASTINUM,
    NOUNS,
    OPENINGS,
    PAIRED,
    POSSIBLE,
    PRESENT,
    PRESENT_DEVICE,
    STATED,
    TORTUOUS,
)

MOST_WORDS = 56
MOST_SENTENCES = 6

Labels = Int8[np.ndarray, "14"]


@dataclass
class _Draft:
    """Sentences so far, and the class of each label that they mention."""

    sentences: list[str] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    def offer(self, sentence: str, denied: Sequence[str] = ()) -> None:
        """Add a sentence that denies these labels, unless it is there already or the report would grow too long."""
        words = sum(len(text.split()) for text in (*self.sentences, sentence))
        if words <= MOST_WORDS and len(self.sentences) < MOST_SENTENCES and sentence not in self.sentences:
            self.sentences.append(sentence)
            self.labels |= dict.fromkeys(denied, NEGATIVE)

    def may_deny(self, label: str) -> bool:
        """Whether nothing has been said of the label, and nothing that goes against its denial."""
        stated = {other for other, value in self.labels.items() if value != NEGATIVE}
        return label not in self.labels and not stated & set(CONTRADICTED.get(label, ()))


def render_report(study: Study) -> tuple[str, Labels]:
    """The report of a study and its labels, in the order of FINDINGS. Every finding is mentioned."""
    rng = study.rng("report")
    draft = _Draft()
    _add_findings(draft, study.findings, rng)
    found = len(draft.sentences)
    clear = not any(draft.labels.values())
    draft.labels |= {"Support Devices": POSITIVE} if any(finding.is_device for finding in study.findings) else {}
    _add_normal(draft, study, clear, rng)
    while len(draft.sentences) < 2:
        draft.offer(_aside(draft, rng))
    sentences = draft.sentences
    if rng.random() < 0.35:  # what is normal first
        sentences = sentences[found:] + sentences[:found]
    elif rng.random() < 0.35:
        sentences = [sentences[index] for index in rng.permutation(len(sentences))]
    if rng.random() < 0.12 and len(sentences) < MOST_SENTENCES:
        sentences = [choose(rng, OPENINGS), *sentences]
    if not study.findings and rng.random() < 0.5 and len(sentences) < MOST_SENTENCES:
        sentences = [*sentences, choose(rng, CONCLUSIONS)]
    return " ".join(sentences), _labels(draft.labels)


def _labels(mentioned: dict[str, int]) -> Labels:
    labels = np.array([mentioned.get(name, BLANK) for name in FINDINGS], np.int8)
    abnormal = (labels == POSITIVE) | (labels == UNCERTAIN)
    abnormal[FINDINGS.index("Support Devices")] = False
    labels[FINDINGS.index("No Finding")] = BLANK if abnormal.any() else POSITIVE
    return labels


def _add_findings(draft: _Draft, findings: Sequence[Finding], rng: np.random.Generator) -> None:
    """A sentence for each finding, in any order; two that are certain often share one."""
    waiting = [findings[index] for index in rng.permutation(len(findings))]
    while waiting:
        finding = waiting.pop(0)
        certain = finding.certainty == "certain"
        if not finding.is_device:
            draft.labels[LABEL_OF[finding.name]] = POSITIVE if certain else UNCERTAIN
        if waiting and certain and _alike(finding, waiting[0]) and rng.random() < 0.4:
            partner = waiting.pop(0)
            draft.labels |= {} if partner.is_device else {LABEL_OF[partner.name]: POSITIVE}
            first, second = _with_article(_noun(finding, rng)), _with_article(_noun(partner, rng))
            draft.sentences.append(_capitalised(choose(rng, PAIRED).format(first, second)))
            continue
        draft.sentences.append(_sentence(finding, rng))
        if finding.name == "opacity" and certain and rng.random() < 0.25:
            draft.sentences[-1] = f"{draft.sentences[-1][:-1]}, {choose(rng, MAYBE_PNEUMONIA)}."
            draft.labels["Pneumonia"] = UNCERTAIN


def _alike(one: Finding, other: Finding) -> bool:
    return one.certainty == other.certainty and one.is_device == other.is_device


def _sentence(finding: Finding, rng: np.random.Generator) -> str:
    certain = finding.certainty == "certain"
    whole = (STATED if certain else HEDGED).get(finding.name, ())
    if whole and rng.random() < 0.55:
        adverb = choose(rng, ADVERBS.get(finding.severity, ("",)))
        return " ".join(choose(rng, whole).format(adverb=adverb).split())
    noun = _noun(finding, rng)
    frame = choose(rng, PRESENT_DEVICE if finding.is_device else PRESENT if certain else POSSIBLE)
    bare = noun.lstrip("*+").replace("*", "a ")
    return _capitalised(
        frame.format(a=_with_article(noun), A=bare, bare=bare, **{"is": "are" if noun.startswith("+") else "is"})
    )


def _noun(finding: Finding, rng: np.random.Generator) -> str:
    """A phrase for the finding, with the marks for an article (*) and a plural (+)."""
    key = f"{finding.severity} nodule" if finding.name == "nodule" else finding.name
    key = f"{key} both" if finding.side == "both" and f"{key} both" in NOUNS else key
    return choose(rng, NOUNS[key]).format(
        side=finding.side,
        site=finding.site,
        adjective=choose(rng, ADJECTIVES.get(finding.site, (finding.site,))),
        degree=choose(rng, DEGREES.get(finding.severity, (finding.severity,))),
    )


def _with_article(noun: str) -> str:
    words = noun.lstrip("+").split("*")
    return words[0] + "".join(("an " if word[0] in "aeioE" else "a ") + word for word in words[1:])


def _capitalised(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]


def _add_normal(draft: _Draft, study: Study, clear: bool, rng: np.random.Generator) -> None:
    """What is normal, what is denied and what is said in passing, each only sometimes."""
    share = 1.0 if clear else 0.75
    heart, mediastinum = draft.may_deny("Cardiomegaly"), draft.may_deny("Enlarged Cardiomediastinum")
    if heart and mediastinum and rng.random() < 0.22:
        draft.offer(choose(rng, NORMAL_BOTH), ("Cardiomegaly", "Enlarged Cardiomediastinum"))
    else:
        if heart and rng.random() < 0.55 * share:
            draft.offer(choose(rng, NORMAL_HEART), ("Cardiomegaly",))
        if mediastinum and rng.random() < 0.35 * share:
            draft.offer(choose(rng, NORMAL_MEDIASTINUM), ("Enlarged Cardiomediastinum",))
    if clear and rng.random() < 0.6:
        draft.offer(choose(rng, CLEAR_LUNGS))
    denied = [label for label, (often, _) in DENIED.items() if rng.random() < often * share and draft.may_deny(label)]
    denied = [denied[index] for index in rng.permutation(len(denied))][:4]
    while denied:
        count = int(rng.integers(1, 4))
        labels, denied = denied[:count], denied[count:]
        names = [choose(rng, DENIED[label][1]) for label in labels]
        listed = ", ".join(names[:-1]) + (" or " if len(names) > 1 else "") + names[-1]
        draft.offer(choose(rng, DENIALS).format(listed), labels)
    if study.body.aorta > 0.75 and rng.random() < 0.5:
        draft.offer(choose(rng, TORTUOUS))
    elif rng.random() < 0.25:
        draft.offer(_aside(draft, rng))


def _aside(draft: _Draft, rng: np.random.Generator) -> str:
    """Something said in passing; not that bones are intact beside a fracture."""
    said = [text for text in ASIDE if draft.labels.get("Fracture", NEGATIVE) == NEGATIVE or text not in INTACT_BONES]
    return choose(rng, said)

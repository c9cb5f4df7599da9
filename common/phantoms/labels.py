"""The CheXpert labels that the text of a phantom report carries, read from the words alone.

A rule labeler in the spirit of CheXpert's (Irvin et al. 2019), for reports that the grammar of `phantom_text` wrote or
that a trained model wrote in its manner, under the conventions stated there. In each sentence it finds mentions of the
classes and cues that deny or hedge, and reads both in order: most cues reach forward to the end of the clause ("no A, B
or C"), some back to the mention before ("A cannot be excluded"). It knows the words of phantoms and a few neighbours:
it is no labeler for real reports.
"""

import re
from dataclasses import dataclass, field

import numpy as np

from common.metrics.clinical import BLANK, FINDINGS, NEGATIVE, POSITIVE, UNCERTAIN
from common.phantoms.text import Labels

_SENTENCE_END = re.compile(r"[;!?]|\.(?!\d)")  # not the point in 2.5 cm
_STUTTER = re.compile(r"\b(\w+)(?: \1\b)+")
_RANK = (BLANK, NEGATIVE, UNCERTAIN, POSITIVE)  # of several mentions the last in this order counts

_HEART = r"(?:heart(?! failure)|cardiac(?=(?:,| and)? (?:silhouette|size|contour|shadow|mediast|hil)))"
_MEDIASTINUM = r"(?:cardio)?mediastin(?:um|al)"
_LARGE = r"(?:enlarged|increased|large|prominent|wide(?:ned)?)\b"
# What a label is called. A mention that is neither denied nor hedged states it.
_NAMES = {
    "Enlarged Cardiomediastinum": r"\b(?:mediastinal (?:widening|enlargement)|(?:widening|enlargement) of the "
    rf"(?:\w+ )?{_MEDIASTINUM}|{_LARGE} (?:superior )?{_MEDIASTINUM})",
    "Cardiomegaly": rf"\b(?:cardiomegaly|(?:cardiac|heart) enlargement|enlargement of the {_HEART}|{_LARGE} {_HEART})",
    "Lung Opacity": r"opacit(?:y|ies)|opacification|infiltrate|air ?space disease",
    "Lung Lesion": r"\b(?:nodul|mass(?:es)?\b(?! effect)|lesion|tumor|neoplasm)",
    "Edema": r"edema|congestion|heart failure",
    "Consolidation": r"consolidat",
    "Pneumonia": r"\b(?:pneumonia|infecti(?:on|ous))",
    "Atelectasis": r"atelecta|(?:lobar|lung) collapse",
    "Pneumothorax": r"pneumothora",
    "Pleural Effusion": r"(?<!pericardial )effusion|pleural fluid",
    "Pleural Other": r"pleural (?:\w+ ){0,2}(?:thickening|scar|plaque)|(?:thickening|scarring) of the pleura",
    "Fracture": r"fracture",
    "Support Devices": r"\b(?:tubes?\b|catheter|(?:central|jugular|subclavian|venous|picc) lines?\b|picc\b|pacemaker|"
    r"pacer\b|cardiac device|defibrillator|(?:ecg|ekg|monitoring|pacing) (?:lead|wire)|electrode)",
}
# A statement of size: a subject, perhaps others, perhaps a verb, and the state ("the heart and hila are not enlarged").
_VERBS = r"(?:is|are|was|were|has|have|appears?|seems?|remains?|may|might|could|be)\b"
_WORD = rf" (?!{_VERBS}|(?:with|there)\b)[\w-]+"
_SAID = rf"(?P<said>(?:{_WORD}){{0,5}}?|(?:,?{_WORD}){{0,7}}?(?:(?: not)? {_VERBS})+(?:{_WORD}){{0,5}}?)"
_STATE = rf"(?P<state>(?P<normal>normal|unremark)|{_LARGE})"
_STATEMENT = rf"(?<!behind the )(?<!over the )(?<!of the )\bSUBJECT{_SAID} {_STATE}"
_NORMAL = r"\b(?:normal|unremarkable) (?!and |or )(?:(?:size|of|the|heart|cardiac|and|appearing|mediastinal) )*SUBJECT"

_SEEN = r"(?:clearly |definitely )?(?:seen|noted|present|identified|visible|visualized|evident|detected|appreciated)\b"
_NOT = r"(?:cannot|can not|can't|could not|not|difficult to)(?: be| been)?(?: \w+ly)?"
# Cues, tried in this order at the start of each word. A turn starts a new clause, an aside only ends a cue's reach.
_CUES = {
    "none": r"no (?:\w+ )?(?:change|increase|decrease|improvement)\b",  # denies nothing
    "hedged": rf"{_NOT} (?:excluded|ruled out)\b",  # reaches back, as "denied" does
    "denied": rf"not {_SEEN}|no longer\b|(?:absent|resolved|removed)\b|(?:is|are|been) (?:excluded|ruled out)\b",
    "hedge": rf"{_NOT} (?:exclude|rule out)\b|"
    r"(?:may|might|could|possibl[ey]|probabl[ey]|likely|perhaps|questionabl[ey]|question of|borderline)\b",
    # Within a denial these add nothing: "no opacity to suggest pneumonia".
    "weak": r"suspicious (?:for|of)\b|(?:suspected|suspicion|suggest\w*|concern\w*|worrisome)\b",
    "deny": r"(?:no|without|neither|nor|negative|(?:free|clear|absence) of|not (?:an?|any|show|demonstrate))\b",
    "turn": rf"(?:is|are|was|were) {_SEEN}|(?:but|however|although|though|while|whereas|except|there)\b|"
    r"and(?= (?:an?|the)\b)|,(?= (?:and )?(?:an?|the|this|mild|small|tiny|trace|minimal|slight|moderate|new|left|right|"
    r"bi\w+)\b)",
    "aside": r"(?<!consistent )(?<!compatible )with\b|as well as\b",
    "comma": r",(?!.* or )",
}
_MENTION = {FINDINGS.index(name): re.compile(pattern) for name, pattern in _NAMES.items()}
_OF_SIZE = {
    FINDINGS.index(name): [re.compile(pattern.replace("SUBJECT", subject)) for pattern in (_STATEMENT, _NORMAL)]
    for name, subject in {"Enlarged Cardiomediastinum": _MEDIASTINUM, "Cardiomegaly": _HEART}.items()
}
_CUE = re.compile(r"\b(?=[a-z,])(?:" + "|".join(f"(?P<{kind}>{pattern})" for kind, pattern in _CUES.items()) + ")")
_LINK = re.compile(r"\b(?:and|or|nor)\b")


def label_report(text: str) -> Labels:
    """The classes of a report's text in the order of FINDINGS; a stated label beats a hedged and that a denied one.

    Case and spacing do not matter. An empty text mentions nothing, so that its No Finding is positive.
    """
    plain = _STUTTER.sub(r"\1", " ".join(text.lower().replace("/", " or ").split()).replace(" ,", ","))
    labels = np.full(len(FINDINGS), BLANK, np.int8)
    for sentence in _SENTENCE_END.split(plain):
        for label, value in _read(sentence.strip()):
            labels[label] = max(int(labels[label]), value, key=_RANK.index)
    abnormal = (labels == POSITIVE) | (labels == UNCERTAIN)
    abnormal[FINDINGS.index("Support Devices")] = False
    labels[FINDINGS.index("No Finding")] = BLANK if abnormal.any() else POSITIVE
    return labels


@dataclass
class _Clause:
    """The mentions read so far in a sentence, and what the cues read so far make of the next one."""

    mentions: list[tuple[int, int]] = field(default_factory=list)  # label and class
    latest: int = 0  # the first of the mentions that cues which reach back apply to
    scope: int = BLANK
    hedge_waits: bool = False

    def take_cue(self, kind: str) -> None:
        if kind in ("hedged", "denied"):
            self._change_latest(UNCERTAIN if kind == "hedged" else NEGATIVE)
        elif kind == "hedge" or (kind == "weak" and self.scope != NEGATIVE):
            self.scope, self.hedge_waits = UNCERTAIN, True
        elif kind in ("deny", "turn", "aside") or (kind == "comma" and self.scope == UNCERTAIN):
            self.end()
            self.scope = NEGATIVE if kind == "deny" else BLANK
            self.latest = len(self.mentions) if kind == "turn" else self.latest

    def take_mention(self, label: int, value: int, linked: bool) -> None:
        self.latest = self.latest if linked else len(self.mentions)
        self.mentions.append((label, self.scope or value))
        self.hedge_waits = False

    def end(self) -> None:
        """A hedge without a mention after it is of the one before: "pneumonia is possible"."""
        if self.hedge_waits:
            self._change_latest(UNCERTAIN)
        self.hedge_waits = False

    def _change_latest(self, value: int) -> None:
        self.mentions[self.latest :] = [(label, value) for label, _ in self.mentions[self.latest :]]


def _read(sentence: str) -> list[tuple[int, int]]:
    """Each mention of a label in a sentence, and its class."""
    events = [(cue.start(), cue.lastgroup or "", BLANK, BLANK, cue.end()) for cue in _CUE.finditer(sentence)]
    for label, pattern in _MENTION.items():
        events += [(name.start(), "", label, POSITIVE, name.end()) for name in pattern.finditer(sentence)]
    for label, (statement, normal) in _OF_SIZE.items():
        for said in statement.finditer(sentence):
            denied = bool({"not", "no"} & set(said["said"].split())) != bool(said["normal"])
            events += [(said.start(), "turn", BLANK, BLANK, said.start())]
            events += [(said.start("state"), "", label, NEGATIVE if denied else POSITIVE, said.end())]
        events += [(name.start(), "", label, NEGATIVE, name.end()) for name in normal.finditer(sentence)]
    clause, end = _Clause(), len(sentence)
    for start, kind, label, value, stop in sorted(events):
        if kind:
            clause.take_cue(kind)
            end = len(sentence) if kind in ("turn", "aside") else end
            continue
        # In "there is A and B cannot be excluded" the cue is of B alone.
        linked = _LINK.search(sentence, end, start) is not None and "there " not in sentence[:start]
        clause.take_mention(label, value, linked)
        end = stop
    clause.end()
    return clause.mentions


def positive_labels(labels: Labels) -> tuple[str, ...]:
    """The names of what is stated or suspected: classes positive and uncertain."""
    return tuple(name for name, label in zip(FINDINGS, labels, strict=True) if label in (POSITIVE, UNCERTAIN))

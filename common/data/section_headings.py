"""The meaning of a heading in a radiology report: a section, a view of the chest, an organ, or unknown.

The spellings, and the words by which a heading tells views, are facts from MIT-LCP's section parser for MIMIC-CXR
(https://github.com/MIT-LCP/mimic-cxr, `txt/section_parser.py`). Two of its entries are not followed: PFI, there a
history, is a preliminary reading, which must not be shown to a model; NDICATION, there an impression, is an indication.
Spellings that it lacks are found by their distance to a word of the list.
"""

import functools
import re
from typing import Literal, NamedTuple

Section = Literal[
    "findings",
    "impression",
    "indication",
    "history",
    "comparison",
    "examination",
    "technique",
    "date",
    "recommendations",
    "notification",
    "wet read",
    "addendum",
    "comment",
    "other",
]
Kind = Literal["section", "findings", "views", "organ", "sentence", "unknown"]

# Whole headings, without punctuation.
_SPELLINGS: dict[Section, str] = {
    "findings": "findings|finding|reference findings",
    "impression": "impression|impressions|conclusion|conclusions|findings and impression|findings impression|imp"
    "|impression and findings|summary|opinion|assessment|interpretation|diagnosis|diagnoses|end of impression"
    "|bottom line",
    "indication": "indication|indications|clinical indication|clinical indications|reason for exam|reason"
    "|reason for examination|reason for this examination|reason for study|reason for visit|clinical question"
    "|underlying medical condition|medical condition|clinical presentation|presentation|admitting diagnosis"
    "|admission diagnosis|chief complaint|presenting complaint|symptoms|signs and symptoms",
    "history": "history|clinical history|patient history|clinical information|clinical data|clinical details"
    "|clinical background|history of present illness|past medical history|pmh|hpi|hx",
    "comparison": "comparison|comparisons|comparison exam|comparison film|reference exam|prior studies|prior"
    "|previous studies|compared to|compared with",
    "examination": "examination|examinations|exam|exams|type of examination|study|studies",
    "technique": "technique|techniques|procedure|procedures|protocol|views|view|projection|number of views",
    "date": "date",
    "recommendations": "recommendation|recommendations|recommendation s",
    "notification": "notification|notifications",
    "wet read": "wet read|wetread|pfi|preliminary report|preliminary findings",
    "addendum": "addendum|addenda",
    "comment": "comment|comments|notice",
    "other": "preamble|narrative|clinical correlation",
}
SPELLINGS = {spelling: section for section, spellings in _SPELLINGS.items() for spelling in spellings.split("|")}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that tell the section of a longer heading, the first that fits: what must not enter findings comes first, and
# what a model is shown as input last. History and indication also need every other word to be one of this module.
TELLING: dict[Section, frozenset[str]] = {
    "impression": _words(
        "impression impressions conclusion conclusions summary opinion assessment interpretation diagnosis diagnoses "
        "synopsis differential"
    ),
    "recommendations": _words("recommendation recommendations recommended suggestion suggestions advice plan"),
    "notification": _words("notification notifications communication communicated communications notified critical"),
    "addendum": _words("addendum addenda amendment correction"),
    "wet read": _words("wet pfi preliminary read reading"),
    "other": _words(
        "signed dictated dictating approved transcribed attending resident radiologist physician reviewed verified "
        "accession mrn attestation disclaimer"
    ),
    "comment": _words("comment comments notice"),
    "findings": _words("findings finding"),
    "comparison": _words("comparison comparisons"),
    "technique": _words("technique techniques technical protocol contrast dose exposure"),
    "history": _words("history"),
    "indication": _words("indication indications reason"),
}
EXAMINATION = _words("examination examinations exam exams study studies procedure procedures date time")
RESULTS = _words("report result results observation observations description")  # findings where none are yet
INPUTS: frozenset[Section] = frozenset({"indication", "history"})  # sections that a model may be shown

SURE_VIEWS = _words(
    "view views radiograph radiographs radiography film films cxr xray xrays ray rays portable projection projections "
    "window windows babygram"
)
VIEWS = _words("chest ap pa lat lateral frontal upright semiupright supine erect lordotic decubitus bedside")
ORGANS = _words(
    "lung lungs pleura pleural heart cardiac cardiomediastinal cardiomediastinum cardiothoracic mediastinum "
    "mediastinal hilum hila hilar hili aorta aortic trachea tracheal tracheobronchial airway airways bronchi "
    "bronchial carina diaphragm diaphragms diaphragmatic hemidiaphragm hemidiaphragms bone bones bony osseous "
    "skeletal skeleton musculoskeletal rib ribs spine spinal vertebra vertebrae vertebral thoracic thorax clavicle "
    "clavicles shoulder shoulders humerus sternum sternal scapula scapulae abdomen abdominal subdiaphragmatic stomach "
    "gastric bowel colon liver spleen kidney kidneys gallbladder pancreas adrenal adrenals tissue tissues neck "
    "thyroid breast breasts axilla axillae axillary wall vessel vessels vascular vascularity vasculature pulmonary "
    "parenchyma parenchymal interstitium interstitial silhouette contour contours tube tubes line lines catheter "
    "catheters device devices hardware implant implants pacemaker pacer aicd icd lead leads wire wires drain drains "
    "support port ports picc ett ngt et ng og endotracheal nasogastric enteric feeding tracheostomy swan central "
    "venous monitoring surgical clips node nodes lymph esophagus esophageal oesophagus pericardium pericardial "
    "ventricle ventricles atrium atria atrial valve valves chamber chambers fissure fissures costophrenic sulci angle "
    "angles base bases apex apices apical lobe lobes lobar zone zones field fields space spaces airspace volume "
    "volumes effusion effusions consolidation consolidations opacity opacities opacification edema oedema nodule "
    "nodules mass masses pneumonia fracture fractures calcification calcifications infiltrate infiltrates scarring "
    "scar hernia congestion cavity cavities lesion lesions air gas fluid abnormality abnormalities structure "
    "structures left right bilateral upper lower middle other miscellaneous misc incidental additional position size "
    "lll lul rll rul rml svc ivc ij ptx great compression occlusion contusion ectasia"
)
_DISEASE = re.compile(r"\w{3,}(?:itis|osis|oses|oma|omas|ectasis|thorax|thoraces|megaly|pathy|plegia|ema)")
FILLING = _words(
    "a an the of and or for with in to from at on by per this s final overall radiological radiographic radiologic "
    "radiology imaging clinical provisional general diagnostic brief main key initial revised updated significant "
    "relevant pertinent medical past present surgical social family oncologic oncological cardiac patient current type "
    "signs symptoms number one two three four single double multiple first second repeat additional semi x am pm hours "
    "hrs hour bone detailed previous prior"
)
_SENTENCE = _words(
    "is are was were be been has have had there this these it which but no not seen shown shows show demonstrates "
    "demonstrate demonstrated reveals reveal obtained made given"
)
_CORRECTED = sorted(
    word
    for word in frozenset().union(*TELLING.values(), *map(str.split, SPELLINGS), EXAMINATION)
    if len(word) >= 7 and word not in ORGANS
)
# English words two letters away from one of those.
_OTHER_WORDS = _words("contusion confusion companion compassion induction inclusion inspiration") | ORGANS | VIEWS
KNOWN_WORDS = frozenset().union(
    *TELLING.values(), *map(str.split, SPELLINGS), EXAMINATION, RESULTS, SURE_VIEWS, VIEWS, ORGANS, FILLING
)


class Heading(NamedTuple):
    """What a heading stands for: its section, where the kind is "section", and whether that is a listed spelling."""

    kind: Kind
    section: Section = "other"
    listed: bool = False


@functools.lru_cache(maxsize=4096)
def classify(heading: str) -> Heading:
    """What a heading stands for, without its colon; in mixed case only what is made of known words throughout."""
    words = heading_words(heading)
    phrase = " ".join(words)
    if phrase in SPELLINGS:
        return Heading("section", SPELLINGS[phrase], listed=True)
    words = tuple(map(_corrected, words))
    corrected = " ".join(words)
    found = SPELLINGS.get(corrected) or _SQUEEZED.get("".join(words))
    if found:
        return Heading("section", found)
    told, familiar = frozenset(words), all(map(_is_known, words))
    organ = any(word in ORGANS or _DISEASE.fullmatch(word) for word in words)
    capitals = is_capitals(heading)
    if capitals or familiar:
        if not told & _SENTENCE and (capitals or not organ):
            for section, telling in TELLING.items():
                if told & telling and section == "findings":
                    return Heading("findings")
                if told & telling:
                    return Heading("section", section if familiar or section not in INPUTS else "other")
            if words and words[0] in ("prior", "previous", "old"):
                return Heading("section", "comparison")
        if told & SURE_VIEWS or (told & VIEWS and not organ):
            return Heading("views")
        if organ:
            return Heading("organ")
        if not told & _SENTENCE and told & EXAMINATION:
            return Heading("section", "examination")
        if not told & _SENTENCE and told & RESULTS:
            return Heading("findings")
    return Heading("sentence" if told & _SENTENCE else "unknown")


@functools.lru_cache(maxsize=4096)
def heading_words(heading: str) -> tuple[str, ...]:
    """The words of a heading in lower case, without digits, marks of de-identification and punctuation."""
    plain = re.sub(r"\b([ap])\.?\s?m\b\.?", r"\1m", heading.lower())
    return tuple(re.findall(r"[^\W\d_]+", re.sub(r"\bx-?\s?ray", "xray", plain)))


def is_capitals(heading: str) -> bool:
    """Whether a heading is in capitals, but for a.m., p.m. and small words as in "PA and LATERAL"."""
    plain = re.sub(r"\b(?:[ap]\.?m|and|or|of|the|in|with|for|to|on|by)\b", "", heading)
    return plain == plain.upper()


def shown_name(heading: str) -> str:
    """A heading for a list: its words in capitals, so that dates, times and what was taken out are left out."""
    return " ".join(heading_words(heading)).upper()


def ends_with_name(heading: str, section: Section) -> bool:
    """Whether the last word of a heading of at most three is a name of its section, or a misspelling of one.

    Also "reason for exam" and other listed spellings of what a model is shown, of more than one word.
    """
    words = heading_words(heading)
    if section in INPUTS and len(words) > 1 and " ".join(words) in SPELLINGS:
        return True
    return 0 < len(words) <= 3 and _corrected(words[-1]) in TELLING.get(section, ())


def names_nobody(heading: str) -> bool:
    """Whether a heading is of a section or of views in words of this module and misspellings of them.

    Others could hold a name, or a finding.
    """
    familiar = all(map(_is_known, map(_corrected, heading_words(heading))))
    return familiar and classify(heading).kind in ("section", "findings", "views")


def _is_known(word: str) -> bool:
    return word in KNOWN_WORDS or _DISEASE.fullmatch(word) is not None


_SQUEEZED = {spelling.replace(" ", ""): section for spelling, section in SPELLINGS.items() if len(spelling) > 6}


@functools.lru_cache(maxsize=4096)
def _corrected(word: str) -> str:
    """The word of a section that this one misspells: one edit away, or two of ten letters and the same first."""
    if len(word) < 6 or word in KNOWN_WORDS or word in _OTHER_WORDS:
        return word
    for limit in (1, 2):
        for known in _CORRECTED:
            near = limit == 1 or (len(known) >= 10 and known[0] == word[0])
            if near and abs(len(known) - len(word)) <= limit and edit_distance(word, known) <= limit:
                return known
    return word


def edit_distance(one: str, other: str) -> int:
    """Letters to insert, delete, replace or swap with their neighbour to make `other` of `one` (optimal alignment)."""
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, start=1):
        before, last, row = row, before, [i]
        for j, wanted in enumerate(other, start=1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]

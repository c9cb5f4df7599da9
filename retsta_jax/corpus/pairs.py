"""The embedded corpus: pairs of free-text and standard fundus reports, and text to train a base model on.

Everything is a function of (seed, index), so any slice can be generated independently, on any machine, in any order.

Training and evaluation are kept apart by what a study says, not by chance: the standard report of a study
decides in which split it may occur, in both languages alike. A model that meets an evaluation report has seen
neither its source nor its target, and the same evaluation set serves training sets of every size. Reports of one
or two findings (both eyes normal) are too few to hold out and occur in training only. Held out by styles, each split
has its own writing styles besides (`styles.py`).
"""

import zlib
from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from common.data.records import Language, ReportPair
from common.errors import UserError
from retsta_jax.corpus.findings import FORMS, FundusStudy, standard_phrase, standard_report
from retsta_jax.corpus.fundus import choose, sample_study
from retsta_jax.corpus.phrases import PHRASES
from retsta_jax.corpus.style import SPLITS, Split
from retsta_jax.corpus.styles import styles_of
from retsta_jax.corpus.wording import original_report
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import LANGUAGES

Languages = Literal["zh", "en", "both"]
HeldOut = Literal["states", "styles"]

INSTRUCTIONS: dict[str, dict[Language, str]] = {
    "translate": {"zh": "译成英文", "en": "Translate to Chinese"},
    "repeat": {"zh": "复述", "en": "Repeat"},
    "reverse": {"zh": "倒序", "en": "Reverse the order"},
    "eyes": {"zh": "提到的眼别", "en": "Eyes mentioned"},
}
DEFINITIONS: dict[Language, tuple[str, ...]] = {
    "zh": ("{0}即{1}。", "{0}又称{1}。", "{0}的规范名称是{1}。", "{1}也写作{0}。"),
    "en": ("{0} means {1}.", "{0} is another name for {1}.", "The standard term for {0} is {1}."),
}


def make_splits(
    train: int,
    validation: int,
    test: int,
    seed: int,
    language: Languages = "zh",
    noise: float = 0.5,
    held_out: HeldOut = "states",
) -> dict[str, list[ReportPair]]:
    """Splits without a common source or target; held out by "styles", also without a common writing style.

    validation and test do not depend on the size of train.
    """
    if held_out not in get_args(HeldOut):
        raise UserError(f"held_out {held_out!r} of the generated corpus: expected states or styles")
    _check(language, noise, train=train, validation=validation, test=test, seed=seed)
    counts: dict[Split, int] = {"test": test, "validation": validation, "train": train}
    sources: set[str] = set()
    splits: dict[str, list[ReportPair]] = {}
    for split, count in counts.items():
        pairs: list[ReportPair] = []
        index = 0
        while len(pairs) < count:
            rng = np.random.default_rng([seed, SPLITS.index(split), index])
            study = _study_of_split(rng, split)
            pair = make_pair(study, rng, index, language, noise, f"{split}-", split if held_out == "styles" else None)
            if pair.source not in sources:
                sources.add(pair.source)
                pairs.append(pair)
            index += 1
        splits[split] = pairs
    return {split: splits[split] for split in SPLITS}


def split_of(study: FundusStudy) -> Split:
    """The split in which a study may occur: of those with more than two findings, a tenth each for evaluation."""
    if len(study.findings) <= 2:
        return "train"
    tenth = zlib.crc32(standard_report(study, "en").encode()) % 10
    if tenth == 0:
        return "test"
    return "validation" if tenth == 1 else "train"


def _study_of_split(rng: np.random.Generator, split: Split) -> FundusStudy:
    while split_of(study := sample_study(rng)) != split:
        pass
    return study


def make_pair(
    study: FundusStudy,
    rng: np.random.Generator,
    index: int,
    language: Languages,
    noise: float,
    prefix: str = "",
    styles_for: Split | None = None,
) -> ReportPair:
    """A pair whose id names its style; "both" alternates zh and en. `styles_for`: whose styles are used, None: all."""
    spoken: Language = LANGUAGES[index % 2] if language == "both" else language
    style = choose(rng, styles_of(spoken, styles_for))
    source = original_report(study, spoken, rng, noise, style)
    return ReportPair(f"{prefix}{spoken}-{style.name}-{index:06d}", source, standard_report(study, spoken), spoken)


def _check(language: str, noise: float, **numbers: int) -> None:
    if language not in ("zh", "en", "both"):
        raise UserError(f"language {language!r} of the generated corpus: expected zh, en or both")
    if not 0 <= noise <= 1:
        raise UserError(f"noise {noise} of the generated corpus: expected a number from 0 to 1")
    for name, number in numbers.items():
        if number < 0:
            raise UserError(f"{name} {number} of the generated corpus: expected 0 or more")


def pretraining_text(seed: int, index: int) -> str:
    """Text for a base model that is to know both languages and the terms, but not the task.

    Shares of the kinds of text are in PRETRAINING_SHARES. No text holds a free-text report with its own
    standard report, and no study and no style comes from the evaluation splits of `make_splits`.
    """
    rng = np.random.default_rng([seed, len(SPLITS), index])
    kinds = list(PRETRAINING_SHARES)
    kind = kinds[int(rng.choice(len(kinds), p=list(PRETRAINING_SHARES.values())))]
    return kind(rng, choose(rng, LANGUAGES))


def _free_text(rng: np.random.Generator, language: Language) -> str:
    return _training_original(_study_of_split(rng, "train"), rng, language)


def _training_original(study: FundusStudy, rng: np.random.Generator, language: Language) -> str:
    return original_report(study, language, rng, rng.random(), choose(rng, styles_of(language, "train")))


def _standard_text(rng: np.random.Generator, language: Language) -> str:
    return standard_report(_study_of_split(rng, "train"), language)


def _phrase_in_both(rng: np.random.Generator, language: Language) -> str:
    """硬性渗出（黄斑区） -> hard exudates (macula)"""
    other: Language = "en" if language == "zh" else "zh"
    finding = choose(rng, _study_of_split(rng, "train").findings)
    phrase, translation = standard_phrase(finding, language), standard_phrase(finding, other)
    return f"{INSTRUCTIONS['translate'][language]}: {phrase} -> {translation}"


def _glossary(rng: np.random.Generator, language: Language) -> str:
    """硬性渗出 = hard exudates, several lines of it, or the words for the eyes."""
    terms = load_terminology().terms
    lines = []
    for _ in range(int(rng.integers(2, 6))):
        term = choose(rng, terms)
        lines.append(f"{term.zh} = {term.en}" if language == "zh" else f"{term.en} = {term.zh}")
    return "\n".join(lines)


def _definitions(rng: np.random.Generator, language: Language) -> str:
    """NPDR is short for ..., several lines of it, of terms and now and then of an eye."""
    lines = []
    for _ in range(int(rng.integers(2, 6))):
        if rng.random() < 0.1:
            eye = choose(rng, tuple(FORMS[language].eyes))
            other_name, name = choose(rng, PHRASES[language].eyes[eye]), FORMS[language].eyes[eye]
        else:
            term = choose(rng, load_terminology().terms)
            other_name, name = choose(rng, term.synonyms(language)), term.name(language)
        short = other_name.isupper() and language == "en"
        lines.append(
            ("{0} is short for {1}." if short else choose(rng, DEFINITIONS[language])).format(other_name, name)
        )
    return "\n".join(lines)


def _repetition(rng: np.random.Generator, language: Language) -> str:
    report = _free_text(rng, language) if rng.random() < 0.5 else _standard_text(rng, language)
    return f"{INSTRUCTIONS['repeat'][language]}: {report} -> {report}"


def _reversal(rng: np.random.Generator, language: Language) -> str:
    phrases = [standard_phrase(finding, language) for finding in _study_of_split(rng, "train").findings]
    joint = FORMS[language].semicolon
    return f"{INSTRUCTIONS['reverse'][language]}: {joint.join(phrases)} -> {joint.join(reversed(phrases))}"


def _eyes_mentioned(rng: np.random.Generator, language: Language) -> str:
    study = _study_of_split(rng, "train")
    report = _training_original(study, rng, language)
    eyes = ", ".join(FORMS[language].eyes[eye] for eye in study.eyes)
    return f"{INSTRUCTIONS['eyes'][language]}: {report} -> {eyes}"


PRETRAINING_SHARES: dict[Callable[[np.random.Generator, Language], str], float] = {
    _free_text: 0.26,
    _standard_text: 0.18,
    _glossary: 0.08,
    _definitions: 0.20,
    _phrase_in_both: 0.08,
    _repetition: 0.10,
    _reversal: 0.05,
    _eyes_mentioned: 0.05,
}

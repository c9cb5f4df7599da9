"""`retsta paradigm`: from a terminology and a few pairs to two evaluated models (RetSTA, Figure 2).

terminology -> pairs, augmented -> RetSTA-Zero, trained on them -> its labels for many reports, filtered by rules and
deduplicated -> translations -> RetSTA, trained on all of these from the base model -> evaluation of both.

Every stage writes its result into the run directory and reuses existing results, so the same command continues
wherever it was stopped. Several processes train, label and evaluate together, and the first one writes the files. The
paper does not say whether its 60,037 pairs include the labelled ones; here they do.
"""

import dataclasses
import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from common.bounds import CountOrNone, Phantoms, Seed, Steps
from common.config import MovablePath, claim_run_directory, owning_run_directory
from common.data.records import Language, Quarantine, ReportPair, check_splits
from common.errors import UserError
from common.generation.processes import of_first
from common.io.fingerprints import data_record
from common.io.jsonl import write_rows
from common.io.text import read_json_object
from common.models.qwen2_weights import config_from_directory
from common.training.run import stage
from retsta_jax.codes import terminology
from retsta_jax.config import FILES, GIVE, AugmentConfig, DataConfig, RetstaConfig
from retsta_jax.corpus.pairs import HeldOut, make_splits
from retsta_jax.data import load_splits
from retsta_jax.evaluate import Scores, evaluate_run
from retsta_jax.labelling.card import Labelled
from retsta_jax.labelling.code_rules import judge_by_codes
from retsta_jax.labelling.filters import Judge, judge_by_terms, shares_broken
from retsta_jax.labelling.label import PAIRS, LabelConfig, label_reports
from retsta_jax.pairs import read_pairs
from retsta_jax.reports import read_reports
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED, Terminology
from retsta_jax.terminology_command import terminology_record
from retsta_jax.train import base_directory, train_run
from retsta_jax.translation.translate import Counts, Translator, check_ids, check_languages, translate_file

ZERO, FINAL, LABELLED, TRANSLATED = "zero", "final", "labelled", "translated.jsonl"
SPLITS = ("train", "validation", "test")
OTHER: Mapping[Language, Language] = {"zh": "en", "en": "zh"}
MOSTLY = 0.9  # of the pairs: a language that more of them are in is that of all
MOST_COST = 0.1  # of the pairs given, which are right: a rule that rejects more of them is not applied


@dataclasses.dataclass(frozen=True)
class ParadigmData:
    """The pairs to begin with, and the reports to label."""

    corpus: Literal["fundus", "openi", "jsonl"] = "fundus"  # generated; the Open-i archive; files of your own
    language: Language = "zh"  # of generated pairs and reports; those of the test split are in both
    held_out: HeldOut = "styles"  # of generated pairs: what the evaluation splits have that training never saw
    train_size: Phantoms = 2000  # generated pairs, or Open-i reports that keep their codes
    validation_size: Phantoms = 200  # generated pairs, or Open-i reports set aside from the training split
    test_size: Phantoms = 2000  # generated pairs
    reports_size: Phantoms = 60_000  # generated reports without a standard form
    archive: MovablePath = ""  # Open-i: NLMCXR_reports.tgz, as published
    test_ids: MovablePath = ""  # Open-i: openi-testset.txt, the ids of the test split
    train: MovablePath = ""  # jsonl: rows {"id", "source", "target", "language"?}
    validation: MovablePath = ""  # jsonl
    test: MovablePath = ""  # jsonl
    reports: MovablePath = ""  # jsonl: rows {"id", "report"}, or text with one report per line
    targets: Literal["reports", "codes"] = "reports"  # jsonl: reports in words, or lists of codes, one per line

    @property
    def has_codes(self) -> bool:
        """Whether the standard reports are lists of codes: their terminology is that of the pairs given."""
        return self.corpus == "openi" or (self.corpus == "jsonl" and self.targets == "codes")


@dataclasses.dataclass(frozen=True)
class ParadigmConfig:
    """Everything that decides the models."""

    data: ParadigmData = ParadigmData()
    terminology: MovablePath = ""  # CSV, TSV or JSON table of terms; "": the shipped one, of the fundus
    augment_to: CountOrNone = 10_000  # pairs that the first model is trained on; 0: those given alone
    augment: AugmentConfig = AugmentConfig()
    label: LabelConfig = LabelConfig()
    translate: Literal["offline", "endpoint", "none"] = "offline"  # how pairs come to be in the other language
    zero_epochs: Steps = 1  # of the first model
    final_epochs: Steps = 3  # of the second
    train: RetstaConfig = RetstaConfig()  # both trainings; the paradigm sets data, augmentation, epochs and seed
    evaluate_limit: CountOrNone = 0  # maximum number of test reports; 0: all
    seed: Seed = 0


class Start(NamedTuple):
    """What the paradigm begins with."""

    train: list[ReportPair]
    validation: list[ReportPair]
    test: list[ReportPair]
    reports: list[tuple[str | int, str]]


class Prepared(NamedTuple):
    """What the stages go by: the beginning, the terminology, how many terms or codes it has, and the judge of labels;
    validation and test are in both languages where pairs are translated.
    """

    start: Start
    terms: Terminology
    size: int
    judge: Judge
    validation: list[ReportPair]
    test: list[ReportPair]


class Result(NamedTuple):
    """What the stages left, for the page.

    `terms` are the terms, or codes, of the terminology; `skipped` rules with the share of right pairs that they reject;
    `apart` the labelled pairs whose text is neither in validation nor in test.
    """

    terms: int
    start: Start
    skipped: dict[str, float]
    labelled: Labelled
    apart: int
    translated: Counts | None
    mixed: int
    scores: dict[str, dict[str, Scores]]  # by model, then by system


class Translation(NamedTuple):
    """How pairs come to be in the other language, None for not at all, and what of that decides the translations."""

    translator: Translator | None
    made_with: Mapping[str, Any]


def run_paradigm(config: ParadigmConfig, run_dir: Path, translation: Translation) -> Result:
    """Run, or go on with, all stages in `run_dir`. Raises UserError."""

    @owning_run_directory
    def run(config: ParadigmConfig, run_dir: Path) -> Result:
        return run_stages(config, run_dir, translation)

    return run(config, run_dir)


def run_zero(config: ParadigmConfig, run_dir: Path, translation: Translation) -> dict[str, Scores]:
    """Run, or go on with, the stages up to RetSTA-Zero in `run_dir`, and evaluate it. Raises UserError."""

    @owning_run_directory
    def run(config: ParadigmConfig, run_dir: Path) -> dict[str, Scores]:
        train_zero(config, run_dir, prepare(config, run_dir, translation).start)
        return evaluated(run_dir / ZERO, config.evaluate_limit)

    return run(config, run_dir)


def run_stages(config: ParadigmConfig, run_dir: Path, translation: Translation) -> Result:
    """All stages, one after the other, in a directory that this process owns."""
    start, terms, size, judge, validation, test = prepare(config, run_dir, translation)
    train_zero(config, run_dir, start)

    skipped = costly_rules(start.train, judge)
    for name, share in skipped.items():
        stage(f"the rule {name!r} rejects {share:.0%} of the given pairs, which are correct, so it is not applied")
    labelling = dataclasses.replace(config.label, skip_rules=(*config.label.skip_rules, *skipped))
    step(3, "RetSTA-Zero labels the reports")
    zero, reports, output = run_dir / ZERO, str(run_dir / "reports.jsonl"), run_dir / LABELLED
    funnel = label_reports(zero, reports, output, judge, labelling)
    if not funnel.kept:
        raise UserError(
            f"{run_dir / LABELLED}: no labelled report passed the rules, of {len(start.reports)}; rejected.jsonl there "
            "says why; more --zero-epochs, --augment-to or pairs may help"
        )

    step(4, f"{funnel.kept:,} labelled pairs are kept; translation: {config.translate}")
    labelled = Labelled(zero, reports, output, judge, labelling, None, funnel)
    apart = list(without(read_pairs(output / PAIRS, Quarantine()), [*validation, *test]))
    mixed, counts = with_translations(run_dir, translation, terms, "pairs", [*start.train, *apart])
    write_pairs(run_dir / "final-train.jsonl", mixed)

    step(5, f"RetSTA: {len(mixed):,} pairs, epochs: {config.final_epochs}")
    final = training(config, run_dir, "final-train", "final-validation", 0, config.final_epochs)
    train_run(final, run_dir / FINAL)

    step(6, "evaluation of both models")
    scores = {name: evaluated(run_dir / name, config.evaluate_limit) for name in (ZERO, FINAL)}
    return Result(size, start, skipped, labelled, len(apart), counts, len(mixed), scores)


def prepare(config: ParadigmConfig, run_dir: Path, translation: Translation) -> Prepared:
    """Claim `run_dir`, and write there the pairs and reports that the stages read. Raises UserError."""
    if config.data.corpus == "jsonl" and config.data.has_codes and translation.translator is not None:
        raise UserError(f"translate: {config.translate}: lists of codes are not translated; give --translate none")
    check_given(config)
    config_from_directory(base_directory(config.train))
    terms = load_terminology(config.terminology or SHIPPED)
    quarantine = Quarantine()
    start = begin(config, quarantine)
    check_start(config, translation, start, terms)
    of_first(lambda: claim_run_directory(run_dir, config, begun_with(config, start, terms)))
    of_first(lambda: quarantine.write(run_dir / "quarantine.jsonl"))
    write_pairs(run_dir / "train.jsonl", start.train)
    reports = ({"id": id_, "report": report} for id_, report in start.reports)
    of_first(lambda: write_rows(run_dir / "reports.jsonl", reports))
    judge = judge_by_codes(start.train) if config.data.has_codes else judge_by_terms(terms)
    size = len(terminology(start.train) if config.data.has_codes else terms.terms)
    kind = "codes" if config.data.has_codes else "terms"
    step(1, f"terminology of {size:,} {kind}, {len(start.train):,} pairs, {len(start.reports):,} reports")

    translated = functools.partial(with_translations, run_dir, translation, terms)
    validation, _ = translated("validation", start.validation)
    test, _ = translated("test", start.test)
    write_pairs(run_dir / "validation.jsonl", start.validation)
    write_pairs(run_dir / "final-validation.jsonl", validation)
    write_pairs(run_dir / "test.jsonl", test)
    check_splits({"train": start.train, "validation": validation, "test": test})
    return Prepared(start, terms, size, judge, validation, test)


def check_given(config: ParadigmConfig) -> None:
    """Raise UserError where data or a base model is not named."""
    data = config.data
    needed = (*FILES[data.corpus], "reports") if data.corpus == "jsonl" else FILES[data.corpus]
    for name in needed:
        if not getattr(data, name):
            reports = ', and rows {"id", "report"} as --data.reports' if data.corpus == "jsonl" else ""
            raise UserError(f"data.{name}: not given; {GIVE[data.corpus]}{reports}")
    if not config.train.model.base:
        raise UserError(
            "train.model.base: not given; name the directory of a model such as Qwen2.5-7B-Instruct with "
            "--train.model.base DIR"
        )


def check_start(config: ParadigmConfig, translation: Translation, start: Start, terms: Terminology) -> None:
    """Raise UserError for what later stages would refuse, while no directory is claimed by these options yet."""
    for name in SPLITS:
        if not getattr(start, name):
            raise UserError(f"data: the {name} split has no pair; the paradigm needs pairs to train on and to score")
    if not start.reports:
        raise UserError("data: there is no report to label; give more --data.reports-size, or --data.reports FILE")
    if config.augment_to and config.augment_to < len(start.train):
        raise UserError(
            f"augment_to must be at least {len(start.train):,}, the given pairs, or 0, found {config.augment_to:,}"
        )
    for pairs in (start.train, start.validation, start.test):
        if language := translated_language(translation, pairs):
            check_ids([pair for pair in pairs if pair.language == language], OTHER[language])
            try:
                check_languages(terms)
            except UserError as error:
                raise UserError(f"{error}, or give --translate none") from error


def begun_with(config: ParadigmConfig, start: Start, terms: Terminology) -> dict[str, str]:
    """Digests of what a paradigm begins with, as its directory records them."""
    contents = ([pair.id, pair.source, pair.target] for pair in (*start.train, *start.validation, *start.test))
    return {
        "pairs": data_record(contents),
        "reports": data_record([id_, text] for id_, text in start.reports),
        **({} if config.data.has_codes else {"terminology": terminology_record(terms)}),
    }


def train_zero(config: ParadigmConfig, run_dir: Path, start: Start) -> None:
    """Train RetSTA-Zero on the pairs given and those that augmentation makes of them."""
    pairs = max(config.augment_to, len(start.train))
    step(2, f"RetSTA-Zero: {pairs:,} pairs, epochs: {config.zero_epochs}")
    train_run(training(config, run_dir, "train", "validation", config.augment_to, config.zero_epochs), run_dir / ZERO)


def begin(config: ParadigmConfig, quarantine: Quarantine) -> Start:
    """The pairs and reports that a config names or generates. Raises UserError."""
    data = config.data
    if data.corpus == "fundus":
        sizes = data.train_size + data.reports_size, data.validation_size
        made = make_splits(*sizes, 0, seed=config.seed, language=data.language, held_out=data.held_out)
        test = make_splits(0, 0, data.test_size, seed=config.seed, language="both", held_out=data.held_out)["test"]
        unlabelled = made["train"][data.train_size :]
        reports: list[tuple[str | int, str]] = [(pair.id, pair.source) for pair in unlabelled]
        return Start(made["train"][: data.train_size], made["validation"], test, reports)
    if data.corpus == "openi":
        return begin_openi(data, config.seed, quarantine)
    splits = {name: read_pairs(Path(getattr(data, name)), quarantine) for name in SPLITS}
    check_splits(splits)
    return Start(**splits, reports=read_reports(data.reports))


def begin_openi(data: ParadigmData, seed: int, quarantine: Quarantine) -> Start:
    """The pairs of Open-i, of which `train_size` of the training split keep their codes: a larger choice has them too.

    Of the others the report is left, so nothing can learn from their codes. Raises UserError.
    """
    openi = DataConfig(
        corpus="openi", archive=data.archive, test_ids=data.test_ids, validation_size=data.validation_size
    )
    train, validation, test = load_splits(RetstaConfig(data=openi, seed=seed), quarantine)
    if not 0 < data.train_size < len(train):
        raise UserError(
            f"data.train_size: expected 1 to {len(train) - 1:,} of the {len(train):,} training reports, so that some "
            f"are left to label, found {data.train_size:,}"
        )
    drawn = sorted(train, key=lambda pair: hashlib.sha256(f"labelled/{seed}/{pair.id}".encode()).digest())
    labelled = {pair.id for pair in drawn[: data.train_size]}
    unlabelled: list[tuple[str | int, str]] = [(pair.id, pair.source) for pair in train if pair.id not in labelled]
    return Start([pair for pair in train if pair.id in labelled], validation, test, unlabelled)


def training(
    config: ParadigmConfig, run_dir: Path, train: str, validation: str, augment_to: int, epochs: int
) -> RetstaConfig:
    """The config of one of the two trainings."""
    data = DataConfig(
        corpus="jsonl",
        train=str(run_dir / f"{train}.jsonl"),
        validation=str(run_dir / f"{validation}.jsonl"),
        test=str(run_dir / "test.jsonl"),
        targets="codes" if config.data.has_codes else "reports",
        terminology=config.terminology,
        augment_to=augment_to,
    )
    return dataclasses.replace(config.train, data=data, augment=config.augment, epochs=epochs, seed=config.seed)


def translated_language(translation: Translation, pairs: Sequence[ReportPair]) -> Language | None:
    """The language whose pairs are translated; None where translations are not asked for, or pairs are of both."""
    [(usual, count)] = Counter(pair.language for pair in pairs).most_common(1) or [("en", 0)]
    return None if translation.translator is None or count <= MOSTLY * len(pairs) else usual


def with_translations(
    run_dir: Path, translation: Translation, terms: Terminology, name: str, pairs: Sequence[ReportPair]
) -> tuple[list[ReportPair], Counts | None]:
    """Pairs with translations of those in their usual language, where these are asked for; pairs of both as they are.

    A few of another language are told apart by nothing but abbreviations ("OD: DR"), and make no second language.
    """
    usual = translated_language(translation, pairs)
    if translation.translator is None or usual is None:
        return list(pairs), None
    output = run_dir / f"{name}-{TRANSLATED}"
    own = [pair for pair in pairs if pair.language == usual]
    counts = translate_file(own, translation.translator, terms, OTHER[usual], output, translation.made_with)
    return [*pairs, *(read_pairs(output, Quarantine()) if counts.translated else [])], counts


def without(pairs: Sequence[ReportPair], held_out: Sequence[ReportPair]) -> Iterator[ReportPair]:
    """The pairs whose source is not one of those held out."""
    sources = {pair.source for pair in held_out}
    return (pair for pair in pairs if pair.source not in sources)


def costly_rules(pairs: Sequence[ReportPair], judge: Judge) -> dict[str, float]:
    """The rules that reject too many of the pairs given, with their shares: they do not fit how these are written."""
    return {name: share for name, share in shares_broken(pairs, judge).items() if share > MOST_COST}


def evaluated(run_dir: Path, limit: int) -> dict[str, Scores]:
    """The scores of a model and its baselines, from an evaluation that is there, or a new one."""
    return of_first(lambda: scores_there(run_dir)) or evaluate_run(run_dir, "test", limit)


def scores_there(run_dir: Path) -> dict[str, Scores] | None:
    """The scores that a run has on its test split; None where it has not been evaluated on it."""
    file = run_dir / "metrics.json"
    done: dict[str, Any] = read_json_object(file) if file.exists() else {}
    return done.get("systems") if done.get("split") == "test" else None


def write_pairs(file: Path, pairs: Sequence[ReportPair]) -> None:
    """Write pairs as JSONL, in the first of several processes."""
    of_first(lambda: write_rows(file, (dataclasses.asdict(pair) for pair in pairs)))


def step(number: int, what: str) -> None:
    """Say that a stage begins."""
    stage(f"== {number}/6 {what}")

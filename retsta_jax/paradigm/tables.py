"""The runs behind Tables 1 to 5 of the paper, and their scores.

Every seed has a directory of its own, in which all tables share `paradigm/` (RetSTA-Zero and RetSTA). Beside it are
the runs of single tables, on the same pairs and the same test split: few pairs, augmented to the number of given pairs;
the given pairs, not augmented; RetSTA's pairs in one language alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from common.config import check_run_directory, check_trained_on
from common.data.records import Language, Quarantine
from common.errors import UserError
from common.io.jsonl import read_jsonl
from common.io.locks import lock_of, owning
from common.io.numbers import rounded
from common.io.terminal import printable, say
from common.io.text import read_json_object
from retsta_jax.config import RetstaConfig
from retsta_jax.evaluate import BEFORE, CONSTANT, MODEL, NEAREST, evaluate_run
from retsta_jax.pairs import read_pairs
from retsta_jax.paradigm.paper_tables import (
    AUGMENTED,
    BILINGUAL,
    CHINESE,
    ENGLISH,
    FEW,
    NOT_AUGMENTED,
    RETSTA,
    RETSTA_ZERO,
    TABLES,
)
from retsta_jax.paradigm.paradigm import (
    FINAL,
    OTHER,
    ZERO,
    ParadigmConfig,
    Translation,
    begin,
    begun_with,
    run_paradigm,
    run_zero,
    scores_there,
    training,
    write_pairs,
)
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED
from retsta_jax.train import train_run

PARADIGM, ANSWERS = "paradigm", "answers.sqlite"
FINDINGS = "findings F1"
NAMES: Mapping[str, tuple[str, ...]] = {
    "BLEU-1": ("coco/BLEU-1",),
    "BLEU-4": ("coco/BLEU-4",),
    "METEOR": ("nltk/METEOR", "nltk/METEOR-exact"),
    "ROUGE-L": ("coco/ROUGE-L",),
    FINDINGS: ("findings/F1",),
}  # of the columns, as metrics.json has them; METEOR is that of the language
ALONE: Mapping[str, Language] = {CHINESE: "zh", ENGLISH: "en"}
ONE_LANGUAGE = {4: CHINESE, 5: ENGLISH}

Score = dict[str, float]  # value, and low and high where there is an interval


class Run(NamedTuple):
    """A finished run, and how many pairs it was trained on, with those that augmentation made."""

    directory: Path
    pairs: int


class Measured(NamedTuple):
    """What a system scored in one seed, by column, where it has a score; intervals are 95%, over reports.

    `pairs`: those that it was trained on; None: it was not trained here.
    """

    directory: Path
    pairs: int | None
    reports: int
    scores: dict[str, Score]


Rows = dict[str, dict[int, Measured]]  # by the name of the system, then by seed


@owning("directory")
def run_table(
    number: int,
    config: ParadigmConfig,
    directory: Path,
    seeds: Sequence[int],
    translation: Translation,
    peers: Sequence[Path] = (),
) -> Rows:
    """Run what a table needs and is not there yet, for each seed. Returns its rows, those of the paper first.

    `peers`: directories of `retsta baseline`, of the same test reports. Raises UserError.
    """
    configs = {seed: dataclasses.replace(config, seed=seed) for seed in seeds}
    check_directory(directory)
    check_given(number, config, translation)
    for peer in peers:
        peer_name(peer)
    for seed, own in configs.items():
        check_run_directory(seed_directory(directory, seed) / PARADIGM, own)
    language = language_of_table(number, config)
    rows: Rows = {}
    main: dict[int, Path] = {}
    for seed, own in configs.items():
        runs = seed_runs(number, own, seed_directory(directory, seed), translation)
        main[seed] = next(iter(runs.values())).directory
        for name, run in runs.items():
            rows.setdefault(name, {})[seed] = measured(run.directory, MODEL, language, run.pairs)
        for name in (BEFORE, NEAREST, CONSTANT):
            rows.setdefault(name, {})[seed] = measured(main[seed], name, language)
    paper = {name: rows[name] for name in TABLES[number].rows if name in rows}
    return {**paper, **peer_rows(peers, main, language), **rows}


def seed_directory(directory: Path, seed: int) -> Path:
    """Where the runs of a seed are."""
    return directory / f"seed-{seed}"


def seed_runs(number: int, config: ParadigmConfig, folder: Path, translation: Translation) -> dict[str, Run]:
    """The finished runs of one seed by the names of their rows, the one that the paper proposes first."""
    paradigm = folder / PARADIGM
    if number == 3:
        if not is_finished(config, paradigm, (ZERO,)):
            run_zero(config, paradigm, translation)
        return {AUGMENTED: Run(paradigm / ZERO, config.augment_to), **augmentation_runs(config, folder)}
    if not is_finished(config, paradigm, (ZERO, FINAL)):
        run_paradigm(config, paradigm, translation)
    final = Run(paradigm / FINAL, len(read_pairs(paradigm / "final-train.jsonl", Quarantine())))
    if number in ONE_LANGUAGE:
        name = ONE_LANGUAGE[number]
        return {BILINGUAL: final, name: language_run(config, folder, ALONE[name])}
    if RETSTA_ZERO not in TABLES[number].rows:
        return {RETSTA: final}
    given = len(read_pairs(paradigm / "train.jsonl", Quarantine()))
    return {RETSTA: final, RETSTA_ZERO: Run(paradigm / ZERO, max(given, config.augment_to))}


def is_finished(config: ParadigmConfig, run_dir: Path, models: Sequence[str]) -> bool:
    """Whether a paradigm has these models evaluated. Raises UserError where it is one of other pairs or options."""
    check_run_directory(run_dir, config)
    if any(scores_there(run_dir / name) is None for name in models):
        return False
    if config.data.corpus == "jsonl":  # generated pairs follow from the config
        terms = load_terminology(config.terminology or SHIPPED)
        check_trained_on(run_dir, begun_with(config, begin(config, Quarantine()), terms))
    return True


def augmentation_runs(config: ParadigmConfig, folder: Path) -> dict[str, Run]:
    """The pairs given without augmentation, and the first of them augmented to as many, by as much as all are."""
    paradigm = folder / PARADIGM
    given = read_pairs(paradigm / "train.jsonl", Quarantine())
    few = given[: few_of(len(given), config.augment_to)]
    write_pairs(folder / "few.jsonl", few)
    whole = training(config, paradigm, "train", "validation", 0, config.zero_epochs)
    less = dataclasses.replace(whole.data, train=str(folder / "few.jsonl"), augment_to=len(given))
    configs = {
        NOT_AUGMENTED: (whole, folder / "not-augmented"),
        FEW: (dataclasses.replace(whole, data=less), folder / "few-augmented"),
    }
    for own, run_dir in configs.values():
        finish(own, run_dir, config.evaluate_limit)
    return {name: Run(run_dir, len(given)) for name, (_, run_dir) in configs.items()}


def few_of(given: int, augment_to: int) -> int:
    """How many pairs are to `given` as that is to `augment_to`: 400 of 2,000 and 10,000. Raises UserError."""
    if augment_to <= given or given * given < augment_to:
        raise UserError(
            f"table 3 needs --augment-to above the number of pairs given, {given:,}, and at most its square; found "
            f"{augment_to:,}"
        )
    return given * given // augment_to


def language_run(config: ParadigmConfig, folder: Path, language: Language) -> Run:
    """RetSTA trained on its pairs of one language alone, the best checkpoint chosen in that language too."""
    paradigm = folder / PARADIGM
    files: dict[str, Path] = {}
    count = 0
    for split in ("validation", "train"):
        pairs = read_pairs(paradigm / f"final-{split}.jsonl", Quarantine())
        own = [pair for pair in pairs if pair.language == language]
        if not own:
            raise UserError(f"{paradigm / f'final-{split}.jsonl'}: no pair in {language}, needed to train a row")
        files[split] = folder / f"{language}-{split}.jsonl"
        write_pairs(files[split], own)
        count = len(own)
    whole = training(config, paradigm, "final-train", "final-validation", 0, config.final_epochs)
    data = dataclasses.replace(whole.data, train=str(files["train"]), validation=str(files["validation"]))
    finish(dataclasses.replace(whole, data=data), folder / language, config.evaluate_limit)
    return Run(folder / language, count)


def finish(config: RetstaConfig, run_dir: Path, limit: int) -> None:
    """Train and evaluate a run where that has not been done."""
    check_run_directory(run_dir, config)
    if scores_there(run_dir) is None:
        say(f"{run_dir}")
        train_run(config, run_dir)
        evaluate_run(run_dir, "test", limit)


def measured(directory: Path, system: str, language: Language, pairs: int | None = None) -> Measured:
    """What a system of an evaluated directory scored on the reports of a language."""
    metrics = read_json_object(directory / "metrics.json")
    systems = metrics.get("systems")
    if not isinstance(systems, dict) or system not in systems:
        raise UserError(f"{directory / 'metrics.json'}: no scores of {system!r}; evaluate this directory again")
    rows = [row for row in reports_of(directory) if row["language"] == language]
    if not rows:
        raise UserError(f"{directory}: none of its test reports is in {language}, the language of this table")
    return Measured(directory, pairs, len(rows), columns(systems[system], language))


def columns(scores: Mapping[str, Mapping[str, float | None]], language: Language) -> dict[str, Score]:
    """The scores of a language by column; they begin with its name where the test split has two languages."""
    several = any(name.startswith(("en/", "zh/")) for name in scores)
    prefix = f"{language}/" if several else ""
    found: dict[str, Score] = {}
    for column, names in NAMES.items():
        known = (scores[prefix + name] for name in names if prefix + name in scores)
        score = next((one for one in known if one["value"] is not None), None)
        if score is not None:
            found[column] = rounded({end: value for end, value in score.items() if value is not None})
    return found


def reports_of(directory: Path) -> list[dict[str, Any]]:
    """The rows that an evaluation wrote, one a report."""
    return read_jsonl(directory / "predictions.jsonl", {"id": str, "reference": str, "language": str})


def peer_name(directory: Path) -> str:
    """The model that a directory of `retsta baseline` asked. Raises UserError where it is not one."""
    file = directory / "metrics.json"
    found = read_json_object(file) if file.is_file() else {}
    systems = found.get("systems")
    if not isinstance(systems, dict) or not systems or "prompts" not in found:
        raise UserError(f"--baselines {directory}: no result of retsta baseline there; expected its --output directory")
    return next(iter(systems))


def peer_rows(peers: Sequence[Path], runs: Mapping[int, Path], language: Language) -> Rows:
    """A row for each model asked; each directory belongs to the seed whose test reports it answered.

    Raises UserError for one that answered others, or twice the same.
    """
    tested = {seed: {(row["id"], row["reference"]) for row in reports_of(run_dir)} for seed, run_dir in runs.items()}
    rows: Rows = {}
    for peer in peers:
        name = peer_name(peer)
        answered = {(row["id"], row["reference"]) for row in reports_of(peer)}
        seed = next((seed for seed, reports in tested.items() if answered and answered <= reports), None)
        if seed is None:
            raise UserError(
                f"--baselines {peer}: has answers to other reports than the test splits of seeds "
                f"{', '.join(map(str, runs))}; "
                f"give retsta baseline --like {next(iter(runs.values())).parent / ZERO}, or the run of another seed"
            )
        if seed in rows.setdefault(name, {}):
            raise UserError(f"--baselines: {rows[name][seed].directory} and {peer} both have {name} for seed {seed}")
        rows[name][seed] = measured(peer, name, language)
    return rows


def check_directory(directory: Path) -> None:
    """Raise UserError where a directory holds something, but no runs of tables."""
    names = [entry.name for entry in directory.iterdir() if lock_of(entry.name) is None]
    if names and not any(name.startswith(("seed-", ANSWERS)) for name in names):
        raise UserError(
            f"{directory}: contains {printable(min(names))} and no runs of retsta table; give another --directory"
        )


def check_given(number: int, config: ParadigmConfig, translation: Translation) -> None:
    """Raise UserError where the pairs given are too few for a table, or not in the languages that it compares."""
    if config.data.has_codes:
        raise UserError("retsta table: the tables need reports in words; give --data.corpus fundus or jsonl with these")
    given = given_pairs(config)
    if number == 3:
        few_of(given.pairs, config.augment_to)
    needed: dict[str, set[Language]] = {"test": {language_of_table(number, config)}}
    if number in ONE_LANGUAGE:
        needed["training"] = set(get_args(Language))
    for name, wanted in needed.items():
        languages = set(given.test if name == "test" else given.train)
        if translation.translator is not None and len(languages) == 1:
            languages |= {OTHER[one] for one in languages}
        if missing := wanted - languages:
            raise UserError(
                f"table {number} needs {name} pairs in {' and '.join(sorted(missing))}; give --translate offline or "
                "endpoint, or pairs in both languages"
            )


class Given(NamedTuple):
    """The training pairs that a paradigm begins with, and the languages of these and of the test split."""

    pairs: int
    train: set[Language]
    test: set[Language]


def given_pairs(config: ParadigmConfig) -> Given:
    """What a config names or will generate. Raises UserError."""
    data = config.data
    if data.corpus == "fundus":
        return Given(data.train_size, {data.language}, set(get_args(Language)))
    start = begin(config, Quarantine())
    languages = [{pair.language for pair in pairs} for pairs in (start.train, start.test)]
    return Given(len(start.train), *languages)


def language_of_table(number: int, config: ParadigmConfig) -> Language:
    """The language of the reports that a table scores; where it is that of the pairs given, and they have two, zh."""
    language = TABLES[number].language
    if language != "given":
        return language
    given = given_pairs(config).train
    return next(iter(given)) if len(given) == 1 else "zh"

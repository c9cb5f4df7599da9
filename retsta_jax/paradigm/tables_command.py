"""The command line of `retsta table`, its presets, its table and its page."""

import dataclasses
import itertools
import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.bounds import SEED, bounded
from common.config_options import first_word, preset_parser, read_preset_options
from common.endpoint import add_endpoint_options, endpoint_settings
from common.errors import UserError
from common.io.numbers import NONE, interval_text, rounded, score_text
from common.io.outputs import check_own_object, check_own_page
from common.io.safetensors import write_json
from common.io.tables import markdown_table
from common.io.terminal import say
from common.metrics.meteor import absence
from common.options import Needs, used_settings
from common.report.environment import environment
from common.report.page import REPORT_FILE, Page, Table, save_run_page
from common.report.table import mean_interval
from retsta_jax.paradigm.command import NEEDS as PARADIGM_NEEDS
from retsta_jax.paradigm.command import PRESETS as PARADIGM_PRESETS
from retsta_jax.paradigm.ordering import Comparison, compare, ordering_sentence
from retsta_jax.paradigm.paper_tables import AUGMENTED, BILINGUAL, FEW, METRICS, NOT_AUGMENTED, RETSTA, TABLES
from retsta_jax.paradigm.paradigm import ParadigmConfig, Translation, check_given
from retsta_jax.paradigm.tables import ANSWERS, NAMES, Rows, few_of, run_table
from retsta_jax.translation.command import made_with, translator_of
from retsta_jax.translation.endpoint_translator import MAX_TOKENS

TABLE = "table.json"
METRIC = "BLEU-4"  # that the ordering goes by
PROPOSED = (RETSTA, AUGMENTED, BILINGUAL)  # the rows that the page draws first
_DEMO, _PAPER = PARADIGM_PRESETS["demo"], PARADIGM_PRESETS["retsta-7b"]
PRESETS: dict[str, ParadigmConfig] = {
    "demo": dataclasses.replace(
        _DEMO,
        data=dataclasses.replace(_DEMO.data, held_out="styles", train_size=2000, validation_size=100, test_size=400),
        augment_to=10_000,
    ),
    "retsta-7b": dataclasses.replace(_PAPER, data=dataclasses.replace(_PAPER.data, test_size=4000)),
}  # test reports are in both languages by turns
NEEDS = (*PARADIGM_NEEDS, Needs("seed", give="give --seeds"))
HELP = """Table N (1 to 5) of the RetSTA paper, run once a seed. What is in the directory already is not done again, and
tables share what they have in common.
  1  English reports: RetSTA beside other models        2  Chinese reports: the same, and RetSTA-Zero
  3  augmentation: few pairs augmented, the pairs given, these augmented
  4  Chinese only or bilingual, on Chinese reports      5  English only or bilingual, on English reports
Everything else is as in retsta paradigm. The preset retsta-7b has the paper's sizes, and needs --train.model.base DIR.
"""


def table(arguments: list[str]) -> None:
    """Run the command. Raises UserError."""
    options = preset_parser("retsta table", PRESETS, HELP, "--directory DIR", choice="N")
    options.add_argument(
        "--seeds", nargs="+", type=bounded(SEED), default=[0, 1, 2], metavar="N", help="one run each; default: 0 1 2"
    )
    options.add_argument(
        "--baselines", nargs="+", type=Path, default=[], metavar="DIR",
        help="for 1 and 2: results of `retsta baseline --like DIR/seed-0/paradigm/zero` and of other seeds",
    )  # fmt: skip
    add_endpoint_options(options)
    word, rest = first_word("retsta table", TABLES, arguments)
    config, chosen = read_preset_options(options, PRESETS, rest, NEEDS, check_given)
    number, directory, seeds = int(word), chosen.directory, chosen.seeds
    if repeated := [seed for seed in seeds if seeds.count(seed) > 1]:
        raise UserError(f"--seeds: {repeated[0]} is given twice; each seed is one run, so give different ones")
    if chosen.baselines and RETSTA not in TABLES[number].rows:
        raise UserError("--baselines: not read by tables 3 to 5, which compare trainings; leave it out")
    folder = directory / f"table-{number}"
    endpoint = endpoint_settings(chosen, directory / ANSWERS, MAX_TOKENS)
    if (endpoint is None) == (config.translate == "endpoint"):
        raise UserError("retsta table: --translate endpoint and --endpoint URL go together; give both or neither")
    check_own_object(folder / TABLE, ("table", "ordering", "rows"))
    check_own_page(folder / REPORT_FILE)
    translation = Translation(None if config.translate == "none" else translator_of(endpoint), made_with(endpoint))
    rows = run_table(number, config, directory, seeds, translation, chosen.baselines)
    labels = labels_of(number, config, rows)
    found = comparisons(number, rows, seeds, labels)
    shown = dataclasses.replace(
        page_of(number, config, rows, labels, ordering_sentence(METRIC, found)),
        command=shlex.join(["retsta", "table", *(word for word in arguments if not word.startswith("--send"))]),
    )
    save_run_page(folder, shown)
    write_json(folder / TABLE, rounded(record(number, rows, found)))
    for line in (*shown.notes, "", markdown_table(shown.tables[0].columns, shown.tables[0].rows), "", shown.verdict):
        say(line)
    say(f"page: {(folder / REPORT_FILE).absolute()}")


def comparisons(number: int, rows: Rows, seeds: Sequence[int], labels: Mapping[str, str]) -> list[Comparison]:
    """The comparisons that the paper's table makes, and for Tables 1 and 2 those with every other system."""
    scores = {name: [value_of(own, seed) for seed in seeds] for name, own in rows.items()}
    figures = {name: TABLES[number].figures(name) for name in rows}
    paper = {name: own[METRIC] for name, own in figures.items() if own}
    chain = TABLES[number].chain
    pairs = list(itertools.pairwise(chain)) or [(RETSTA, name) for name in rows if name != RETSTA]
    found = [compare(first, second, scores, paper) for first, second in pairs]
    named = ((one, labels.get(one.first, one.first), labels.get(one.second, one.second)) for one in found)
    return [one._replace(first=first, second=second) for one, first, second in named]


def value_of(own: Mapping[int, Any], seed: int, metric: str = METRIC) -> float | None:
    """The score of a system in a seed, None where it has none."""
    return own[seed].scores.get(metric, {}).get("value") if seed in own else None


def record(number: int, rows: Rows, found: Sequence[Comparison]) -> dict[str, Any]:
    """What table.json holds; scores are fractions of 1, also those of the paper."""

    def scores_of(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for metric in NAMES:
            own = [one.scores[metric] for one in rows[name].values() if metric in one.scores]
            if own:
                yield metric, dict(zip(("mean", "deviation"), mean_and_deviation(own), strict=True))

    return {
        "table": number,
        "ordering": ordering_sentence(METRIC, found),
        "comparisons": [one._asdict() for one in found],
        "rows": {
            name: {
                **dict(scores_of(name)),
                "paper": TABLES[number].figures(name),
                "seeds": {seed: one._asdict() | {"directory": str(one.directory)} for seed, one in own.items()},
            }
            for name, own in rows.items()
        },
    }


def mean_and_deviation(scores: Sequence[Mapping[str, float]]) -> tuple[float, float | None]:
    """The mean over seeds and the standard deviation among them, None of one seed."""
    values = [score["value"] for score in scores]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def percent(scores: Sequence[Mapping[str, float]]) -> str:
    """Mean ± standard deviation over seeds; of one seed its value and interval over reports. In percent."""
    if not scores:
        return NONE
    if len(scores) == 1:
        return interval_text({end: 100 * own for end, own in scores[0].items()}, decimals=2)
    mean, deviation = mean_and_deviation(scores)
    return f"{score_text(100 * mean, 2)} ± {score_text(100 * (deviation or 0), 2)}"


def scores_table(number: int, rows: Rows, labels: Mapping[str, str]) -> Table:
    """The table itself: the paper's figures beside ours, and those of its systems that were not run."""
    paper = TABLES[number]
    columns = ["", *(title for metric in METRICS for title in (metric, f"paper: {metric}"))]
    columns += [metric for metric in NAMES if metric not in METRICS]
    lines = []
    known = {name for own in rows for name in paper.rows if paper.figures(own) == paper.figures(name)}
    for name in (*rows, *(name for name in paper.rows if name not in known)):
        figures = paper.figures(name)
        cells = [labels.get(name, name)]
        for metric in NAMES:
            own = [one.scores[metric] for one in rows.get(name, {}).values() if metric in one.scores]
            cells.append(percent(own))
            if metric in METRICS:
                cells.append(score_text(100 * figures[metric], 2) if figures else NONE)
        lines.append(cells)
    lead = (
        "In percent: mean ± standard deviation over seeds, or of one seed the 95% interval over test reports. The "
        "columns “paper” are the paper's own figures, of models of 7 billion parameters and more on reports of its "
        "hospitals, which are not published: the order of the rows can be compared, the numbers cannot."
    )
    return Table(f"Table {number}: {paper.title}", lead, columns, lines)


def runs_table(rows: Rows, labels: Mapping[str, str]) -> Table:
    """Every run by itself."""
    lines = [
        (
            f"{labels.get(name, name)}, seed {seed}",
            str(one.directory),
            NONE if one.pairs is None else f"{one.pairs:,}",
            f"{one.reports:,}",
            *(percent([one.scores[metric]] if metric in one.scores else []) for metric in NAMES),
        )
        for name, own in rows.items()
        for seed, one in own.items()
    ]
    lead = "In percent, with the 95% interval over test reports. Every directory of a run has a page of its own."
    return Table("Runs", lead, ("", "directory", "pairs trained on", "test reports", *NAMES), lines)


def labels_of(number: int, config: ParadigmConfig, rows: Rows) -> dict[str, str]:
    """What rows are called where their name does not say it."""
    if number != 3:
        return {}
    given = next(iter(rows[NOT_AUGMENTED].values())).pairs or 0
    few = few_of(given, config.augment_to)
    return {
        FEW: f"{few:,} augmented to {given:,}",
        NOT_AUGMENTED: f"{given:,} not augmented",
        AUGMENTED: f"{given:,} augmented to {config.augment_to:,}",
    }


def page_of(number: int, config: ParadigmConfig, rows: Rows, labels: Mapping[str, str], sentence: str) -> Page:
    """The page of a table, without the command."""
    systems = {
        labels.get(name, name): {
            metric: dict(zip(("value", "low", "high"), mean_interval(own), strict=True))
            for metric in NAMES
            if (own := [one.scores[metric] for one in by_seed.values() if metric in one.scores])
        }
        for name, by_seed in sorted(rows.items(), key=lambda row: row[0] not in PROPOSED)
    }
    return Page(
        title=f"RetSTA, Table {number}: {TABLES[number].title}",
        verdict=sentence,
        command="",
        config=used_settings(config, NEEDS),
        environment=environment(),
        systems=systems,
        headline=[metric for metric in NAMES if any(metric in own for own in systems.values())],
        tables=[scores_table(number, rows, labels), runs_table(rows, labels)],
        notes=notes_of(rows),
    )


def notes_of(rows: Rows) -> list[str]:
    """What to know before quoting a number."""
    first = next(iter(rows.values()))
    seeds = len(first)
    notes = [
        f"{seeds} {'seed' if seeds == 1 else 'seeds'}; each has pairs, test reports and a training of its own.",
        "Intervals beside bars: of several seeds the 95% t interval of their mean, of one seed that over reports.",
    ]
    if any("METEOR" in one.scores for own in rows.values() for one in own.values()):
        notes.append("METEOR is nltk's, in Chinese by exact matches alone; the paper does not say which it used.")
    else:
        notes.append(f"METEOR is absent: {absence()}")
    return notes

"""The page of a data card: what `measuring` found, drawn, and a few examples."""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import NamedTuple

from markupsafe import Markup

from common.data.identifiers import INSTALL, KINDS
from common.report.differences import differences
from common.report.page import Bar, Example, Stage, Table
from common.report.pictures import looks, picture
from common.report.plots import SERIES_COLOURS, Series, line_chart
from common.report.template import render_template
from launch.data_card.leaks import Leak
from launch.data_card.measuring import TEXTS, Lengths, Measures, histogram, quantiles
from launch.data_card.reading import APART, DataSet
from retsta_jax.labelling.duplicates import DuplicateConfig

EXAMPLES = 2  # of each split
MOST_VIEWS = 4  # of an example
MOST_LABELS = 60


class SplitFacts(NamedTuple):
    """A split as the page shows it."""

    name: str
    records: int
    share: str
    facts: Mapping[str, str]


class LengthChart(NamedTuple):
    """A histogram for each split."""

    title: str
    legend: Sequence[tuple[str, str]]
    svg: Markup


class Cell(NamedTuple):
    """A share of reports, and the bar that shows it."""

    text: str
    reports: int
    bar: Bar


class LabelTable(NamedTuple):
    """What told the findings, and their shares by split."""

    by: str
    rows: Sequence[tuple[str, Sequence[Cell]]]


class CardPage(NamedTuple):
    """What the page shows."""

    title: str
    verdict: str
    facts: Mapping[str, str]
    splits: Sequence[SplitFacts]
    funnel: Sequence[Stage]
    tables: Sequence[Table]
    charts: Sequence[LengthChart]
    labels: LabelTable | None
    examples: Sequence[Example]
    notes: Sequence[str]
    command: str
    json: str


def render_card(data: DataSet, found: Measures, layout: str, command: str, json: str) -> str:
    """The page as HTML text. Raises UserError where the image of an example cannot be read."""
    card = CardPage(
        title=f"Data card: {layout}",
        verdict=verdict(data, found),
        facts=facts(data, found, layout),
        splits=split_facts(found),
        funnel=funnel(data, found),
        tables=[leak_table(found, layout), identifier_table(found)],
        charts=[chart(own) for own in found.lengths],
        labels=label_table(found),
        examples=examples(data),
        notes=notes(data, found),
        command=command,
        json=json,
    )
    return render_template(
        "card.html.j2",
        package="launch",
        folder="data_card",
        card=card,
        pictures=[[picture(image) for image in example.images] for example in card.examples],
        differences=differences,
        looks=looks,
        colours=SERIES_COLOURS,
    )


def verdict(data: DataSet, found: Measures) -> str:
    """What a reviewer asks first, in a sentence or two."""
    total = sum(found.counts.values())
    splits = ", ".join(f"{count:,} {name}" for name, count in found.counts.items())
    said = f"{total:,} records ({splits}); {len(data.quarantine):,} in quarantine."
    told = [leak_text(leak) for leak in found.leaks if leak.known == "train"]
    return " ".join([said, *told])


def leak_text(leak: Leak) -> str:
    """A leak in words."""
    count = leak.exact + leak.near
    return (
        f"{count:,} of {leak.reports:,} {leak.asked} reports ({leak.share:.1%}) stand in the {leak.known} split, the "
        f"same or nearly."
    )


def facts(data: DataSet, found: Measures, layout: str) -> dict[str, str]:
    """The head of the page."""
    languages = ", ".join(f"{name} {count:,}" for name, count in sorted(found.languages.items()))
    files = ", ".join(map(str, data.files)) or "generated"
    return {
        "layout": layout,
        "source": files,
        "languages": languages,
        "cleaning": data.quarantine.cleaning or "lossless",
        "software": f"medreport-jax {version('medreport-jax')}",
    }


def split_facts(found: Measures) -> list[SplitFacts]:
    """A card for each split."""
    total = sum(found.counts.values())
    shown = []
    for name, count in found.counts.items():
        own = {"images": found.images[name], "patients": found.patients[name]}
        known = {what: f"{number:,}" for what, number in own.items() if number}
        repeated = {"repeat an earlier report": f"{found.repeated[name]:,}"}
        shown.append(SplitFacts(name, count, f"records, {count / total:.0%}", known | repeated))
    return shown


def funnel(data: DataSet, found: Measures) -> list[Stage]:
    """What was read, and what is left."""
    left = sum(found.counts.values())
    return [
        Stage("records read", left + len(data.quarantine)),
        Stage("used", left, data.quarantine.counts(), "" if len(data.quarantine) else "no record is in quarantine"),
    ]


def leak_table(found: Measures, layout: str) -> Table:
    """Reports, and patients, that two splits share."""
    config = DuplicateConfig()

    def patients(leak: Leak) -> str:
        if leak.patients is not None:
            return f"{leak.patients:,}"
        return "0, by their ids" if layout in APART else "not known"

    return Table(
        "Leaks between splits",
        "Reports of a later split that an earlier one has: the same but for case, spaces and punctuation, or nearly, "
        f"with a Jaccard index of character {config.ngram}-grams of {config.threshold} or more (97.5% of pairs at that "
        "threshold are found, and each is verified). Reports without a finding are often alike without being a leak.",
        ("splits", "reports", "the same", "nearly the same", "share", "patients in both"),
        [
            (
                f"{leak.asked} in {leak.known}",
                f"{leak.reports:,}",
                f"{leak.exact:,}",
                f"{leak.near:,}",
                f"{leak.share:.1%}",
                patients(leak),
            )
            for leak in found.leaks
        ],
    )


def identifier_table(found: Measures) -> Table:
    """Identifiers of people by kind and split."""
    title = "Names, dates and numbers"
    if found.identifiers is None:
        return Table(title, f"Not checked: {INSTALL}", ("", *found.counts), [])
    own = found.identifiers
    rows = [(kind, *(f"{split.kinds[kind]:,}" for split in own.values())) for kind in KINDS]
    rows.append(
        ("records with any", *(f"{split.found:,} ({split.found / split.reports:.1%})" for split in own.values()))
    )
    lead = (
        "What rules take for identifiers of people in all texts of a record. They miss names without a title or a "
        "label, among others, and take some other text for one: no proof that the data are de-identified."
    )
    return Table(title, lead, ("kind", *found.counts), rows)


def chart(lengths: Lengths) -> LengthChart:
    """The histogram of lengths as a line for each split."""
    title = f"{TEXTS[lengths.field]}, {lengths.unit}"
    lines = histogram(lengths)
    ends = [length for points in lines.values() for length, _ in points]
    legend = []
    for name in lines:
        own = quantiles(lengths.splits[name])
        legend.append((name, f"{own['median']:,.0f} [{own['5%']:,.0f}, {own['95%']:,.0f}]"))
    return LengthChart(
        title, legend, line_chart(title, [Series(name, points) for name, points in lines.items()], (0, max(ends)))
    )


def label_table(found: Measures) -> LabelTable | None:
    """The shares of reports that state each finding, drawn to the largest."""
    if found.labels is None or not found.labels.counts:
        return None
    shares = {
        label: {name: count / max(found.counts[name], 1) for name, count in own.items()}
        for label, own in found.labels.counts.items()
    }
    largest = max((share for own in shares.values() for share in own.values()), default=0) or 1
    rows = []
    for label, own in list(shares.items())[:MOST_LABELS]:
        bars = [Bar("", "", 0, round(100 * share / largest, 2), None, 0) for share in own.values()]
        counts = found.labels.counts[label].values()
        cells = zip(own.values(), counts, bars, strict=True)
        rows.append((label, [Cell(f"{share:.1%}", count, bar) for share, count, bar in cells]))
    return LabelTable(found.labels.by, rows)


def examples(data: DataSet) -> list[Example]:
    """The first records of each split by a hash of their ids."""
    shown = []
    for name, records in data.splits.items():
        order = sorted(range(len(records)), key=lambda index: hashlib.sha256(records[index].id.encode()).digest())
        for index in order[:EXAMPLES]:
            record = records[index]
            outputs = {"Standard report": record.standard} if record.standard else {"Report": record.report}
            source = record.report if record.standard else record.indication
            images = list(data.pictures(name, index))[:MOST_VIEWS]
            shown.append(Example(f"{name} · {record.id}", source, None, outputs, record.language, images))
    return shown


def notes(data: DataSet, found: Measures) -> list[str]:
    """What to know before quoting a number."""
    said = [f"{what}: {count:,}" for what, count in data.quarantine.notes.items() if count]
    said += data.notes
    if found.labels is not None:
        said += found.labels.notes
        if (more := len(found.labels.counts) - MOST_LABELS) > 0:
            said.append(f"{more:,} rarer findings are in the JSON file alone.")
    return said

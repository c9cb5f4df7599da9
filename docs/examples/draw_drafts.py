"""Draws the picture of `docs/explanation/generation.md`: a report coloured by the drafts that stood.

The shipped UniCrossAdapter writes the reports of its test phantoms greedily, with drafts from a table of the reports
that it was trained on. Drawn is the report whose tokens per pass are nearest to the mean. It takes a minute:

    python docs/examples/draw_drafts.py --output docs/images/drafts.svg
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

import jax
import numpy as np

from common.command import run_cli
from common.data.records import Quarantine
from common.errors import Parser
from common.generation.ngrams import build_table
from common.generation.slots import Request, in_order, run_slots
from common.training.parallel import device_put_tree, generation_layout
from unicross_jax.backbone import decode_settings, without_dropout
from unicross_jax.config import EMBEDDED_RUN
from unicross_jax.data import read_splits
from unicross_jax.generate import report_slots
from unicross_jax.report import studies_of
from unicross_jax.task import encode
from unicross_jax.trained import load_trained

WIDTH, MARGIN = 780, 20  # of the picture, in pixels
ADVANCE, PADDING, GAP = 8.4, 6, 4  # of a letter, within a box, between boxes
BOX, LINE = 25, 46  # height of a box, and from one line to the next
STYLE = """
.card { fill: #ffffff; stroke: #d0d7de; } .ink { fill: #1f2328; } .soft { fill: #59636e; }
.draft { fill: #d3e5ff; } .draft-ink { fill: #0a3069; } .pass { fill: #ffc680; } .pass-ink { fill: #5c2d00; }
@media (prefers-color-scheme: dark) {
.card { fill: #1c1f26; stroke: #3d444d; } .ink { fill: #f0f3f6; } .soft { fill: #aab3bd; }
.draft { fill: #1f3b63; } .draft-ink { fill: #cfe2ff; } .pass { fill: #e08a2c; } .pass-ink { fill: #1c1100; }
}
text { font: 14px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.label { font: 14px system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
.bold { font-weight: 600; font-size: 16px; }
.number { font-size: 11px; text-anchor: middle; }
"""


class Coloured(NamedTuple):
    """The tokens of a report, and which of them were drafts."""

    words: list[str]
    drafted: list[bool]

    @property
    def passes(self) -> int:
        """Passes that the report took; the first reads the images."""
        return self.drafted.count(False)


def write_reports(studies: int, table_reports: int, drafts: int, slots: int) -> list[Coloured]:
    """The greedy reports of test phantoms, with drafts from a table of training reports."""
    trained = load_trained(EMBEDDED_RUN)
    data = dataclasses.replace(trained.config.data, train_size=table_reports, validation_size=0, test_size=studies)
    trained = trained._replace(config=dataclasses.replace(trained.config, data=data))
    splits = read_splits(data, Quarantine())
    tokenizer, images = trained.task.tokenizer, splits["test"].images
    table = build_table([[*tokenizer.encode(s.report), tokenizer.eos_id] for s in splits["train"].studies])
    settings = dataclasses.replace(decode_settings(trained.config, tokenizer), beams=1, drafts=drafts)
    layout = generation_layout()
    programs = report_slots(without_dropout(trained.task.model), settings, tokenizer.bos_id, slots, layout)
    weights = device_put_tree((trained.trainable, trained.task.frozen), layout)
    examples, _ = encode(trained.config, trained.task, splits["test"].studies)
    queue = (
        Request(np.int32(row), jax.tree.map(lambda leaf: leaf[0], studies_of(trained, examples, images, [row], 1)))
        for row in range(len(examples))
    )
    found = []
    for written in in_order(run_slots(programs, weights, queue, table=jax.device_put(table))):
        length = written.lengths[0]
        tokens = written.tokens[0, :length].tolist()
        words = ["end" if token == tokenizer.eos_id else tokenizer.decode([token]) for token in tokens]
        found.append(Coloured(words, written.drafted[0, :length].tolist()))
    return found


def draw(report: Coloured) -> str:
    """The picture as SVG, for light and dark pages."""
    parts = [
        _label(f"{len(report.words)} tokens in {report.passes} passes", MARGIN, 36, "ink bold"),
        *_box("draft", MARGIN, 54, "draft"),
        _label("a draft that the model chose too", 86, 71, "ink"),
        *_box("last", 350, 54, "pass"),
        _label("the last token of a pass, with its number", 408, 71, "ink"),
    ]
    x, y, number = float(MARGIN), 104, 0
    for word, drafted in zip(report.words, report.drafted, strict=True):
        width = _width(word)
        if x + width > WIDTH - MARGIN:
            x, y = float(MARGIN), y + LINE
        parts += _box(word, x, y, "draft" if drafted else "pass")
        if not drafted:
            number += 1
            parts.append(f'<text class="soft number" x="{x + width / 2:.1f}" y="{y + BOX + 13}">{number}</text>')
        x += width + GAP
    height = y + BOX + 13 + MARGIN
    size = f'width="{WIDTH}" height="{height}"'
    title = f"A report of {len(report.words)} tokens that took {report.passes} passes, coloured by drafts"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {size}>',
            f"<title>{title}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _width(word: str) -> float:
    return len(word) * ADVANCE + 2 * PADDING


def _box(word: str, x: float, y: int, kind: str) -> list[str]:
    """A token; its text is as wide as planned, whatever font there is."""
    text = f'x="{x + PADDING:.1f}" y="{y + 17}" textLength="{len(word) * ADVANCE:.1f}" lengthAdjust="spacingAndGlyphs"'
    return [
        f'<rect class="{kind}" x="{x:.1f}" y="{y}" width="{_width(word):.1f}" height="{BOX}" rx="4"/>',
        f'<text class="{kind}-ink" {text}>{escape(word)}</text>',
    ]


def _label(text: str, x: float, y: int, kind: str) -> str:
    return f'<text class="label {kind}" x="{x}" y="{y}">{escape(text)}</text>'


def nearest_to_mean(reports: Sequence[Coloured]) -> Coloured:
    """The first of the reports whose tokens per pass are nearest to those of all together."""
    mean = sum(len(report.words) for report in reports) / sum(report.passes for report in reports)
    return min(reports, key=lambda report: abs(len(report.words) / report.passes - mean))


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = Parser("draw_drafts", description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--studies", type=int, default=200, help="test phantoms whose reports are written")
    parser.add_argument("--table-reports", type=int, default=600, help="training reports of the table")
    parser.add_argument("--drafts", type=int, default=8, help="tokens tried in a pass, at most")
    parser.add_argument("--slots", type=int, default=1)
    chosen = parser.parse_args(arguments)
    reports = write_reports(chosen.studies, chosen.table_reports, chosen.drafts, chosen.slots)
    drawn = nearest_to_mean(reports)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(draw(drawn), encoding="utf-8")
    tokens, passes = sum(len(report.words) for report in reports), sum(report.passes for report in reports)
    print(f"drawn: {len(drawn.words)} tokens in {drawn.passes} passes")
    print(f"{len(reports)} reports: {tokens:,} tokens in {passes:,} passes, {tokens / passes:.2f} a pass")


if __name__ == "__main__":
    run_cli(main)

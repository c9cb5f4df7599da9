"""Draws the picture of `docs/scaling.md`: the predicted speed of each preset on more and more devices.

Its rows are those of the table that `medreport plan` prints:

    medreport plan --preset all --topology all --programs docs/scaling.jsonl --format jsonl > rows.jsonl
    python docs/examples/draw_scaling.py --rows rows.jsonl --output docs/images/scaling.svg
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from common.command import run_cli
from common.errors import Parser, UserError
from common.io.jsonl import read_jsonl
from common.report.plots import SERIES_COLOURS, Series, line_chart

CHIPS = ("v6e", "h100")
WIDTH, MARGIN, CHART, LINE = 780, 20, 345, 21  # of the picture, its edge, a chart's height, a line of the legend
STYLE = """
svg { --card: #ffffff; --ink: #10201f; --ink-soft: #5b6b70; --line: #e2e8ea; --series-0: #0b7a70; --series-1: #d9480f;
  --series-2: #4c5fd7; --series-3: #b7791f; --series-4: #a3327f; --series-5: #3b82a6; }
@media (prefers-color-scheme: dark) {
svg { --card: #141c1f; --ink: #e7eeee; --ink-soft: #93a4a8; --line: #263236; --series-0: #4fd1c1; --series-1: #ff9466;
  --series-2: #98a6ff; --series-3: #edc15f; --series-4: #ee8fce; --series-5: #7cc4e4; }
}
text { font-family: system-ui, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
.card { fill: var(--card); stroke: var(--line); }
.ink { fill: var(--ink); font-size: 13px; } .soft { fill: var(--ink-soft); font-size: 12px; }
.title { fill: var(--ink); font-size: 16px; font-weight: 600; }
"""
OVERLAPPED, APART = "seconds_at_least", "seconds_without_overlap"


def curve(rows: Sequence[dict[str, Any]], bound: str) -> list[tuple[int, float | None]]:
    """Percent of linear scaling by devices: rows a second and device, of those on the fewest devices with overlap."""
    first = rows[0]["size"] / rows[0][OVERLAPPED] / rows[0]["devices"]
    return [(row["devices"], 100 * row["size"] / row[bound] / row["devices"] / first) for row in rows]


def ending(rows: Sequence[dict[str, Any]]) -> str:
    """What bounds the step on the most devices, and which collective costs most there."""
    last = rows[-1]
    links = last["seconds"]["links"] + last["seconds"]["network"]
    text = f"at {last['devices']}: bound by {last['bound_by']}"
    if last["costliest_collective"] is None or links < 0.01 * last[APART]:
        return f"{text}; exchange takes less than 1% of the time"
    where = " between nodes" if last["seconds"]["network"] > links / 2 else ""
    share = f"{100 * links / last[APART]:.0f}% without overlap"
    return f"{text}; exchange {share}, mostly {last['costliest_collective']}{where}"


def draw(rows: Sequence[dict[str, Any]], chips: Sequence[str]) -> str:
    """The picture as SVG, for light and dark pages: a chart for each chip."""
    parts, y = [], MARGIN
    names = list({row["preset"]: 0 for row in rows if row["fits"]})  # each has the same colour in every chart
    if len(names) > SERIES_COLOURS:
        raise UserError(f"draw_scaling: {len(names)} presets; expected at most {SERIES_COLOURS}")
    for chip in chips:
        own = [row for row in rows if row["topology"].startswith(f"{chip}:") and row["fits"]]
        if not own:
            raise UserError(f"draw_scaling: no preset fits {chip} in these rows; name others with --chips")
        presets = {name: [row for row in own if row["preset"] == name] for name in names}
        blank = [Series("", []) for _ in range(SERIES_COLOURS - len(names))]
        solid, dashed = (
            [Series(name, curve(found, bound) if found else []) for name, found in presets.items()]
            for bound in (OVERLAPPED, APART)
        )
        devices = [row["devices"] for row in own]
        chart = str(line_chart(chip, [*solid, *blank, *dashed], (min(devices), max(devices)), doubling=True))
        chart = chart.replace(
            "<svg ", f'<svg x="{MARGIN}" y="{y + 42}" width="{WIDTH - 2 * MARGIN}" height="{CHART}" ', 1
        )
        parts += [
            _text(f"{chip}: percent of linear scaling, by devices", MARGIN, y + 16, "title"),
            _text("solid: all exchange overlaps with arithmetic; dashed: nothing overlaps", MARGIN, y + 35, "soft"),
            re.sub(r"aria-hidden='true'", "", chart),
        ]
        y += CHART + 60
        for index, (name, found) in enumerate(presets.items()):
            if not found:
                continue
            parts.append(f'<rect x="{MARGIN}" y="{y - 9}" width="16" height="4" rx="2" fill="var(--series-{index})"/>')
            parts.append(_text(f"{name}, {ending(found)}", MARGIN + 26, y, "ink"))
            y += LINE
        y += MARGIN
    size = f'width="{WIDTH}" height="{y}"'
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" {size}>',
            f"<title>Predicted scaling of the presets on {' and '.join(chips)}</title>",
            f"<style>{STYLE}</style>",
            f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{y - 1}" rx="8"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _text(text: str, x: float, y: float, kind: str) -> str:
    return f'<text class="{kind}" x="{x}" y="{y}">{escape(text)}</text>'


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = Parser("draw_scaling", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=Path, required=True, help="of medreport plan --programs ... --format jsonl")
    parser.add_argument("--chips", nargs="+", default=CHIPS, help="a chart for each (%(default)s)")
    parser.add_argument("--output", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    rows = read_jsonl(chosen.rows, {"preset": str, "topology": str, "devices": int, "fits": bool})
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_text(draw(rows, chosen.chips), encoding="utf-8")


if __name__ == "__main__":
    run_cli(main)

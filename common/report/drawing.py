"""Inline SVG whose colours and fonts come from the page around it.

matplotlib draws with stand-in colours that are replaced by CSS variables (`--ink-soft`, `--line`, `--series-0`
to `--series-5`), so one drawing serves the light and the dark page.
"""

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

SERIES_COLOURS = 6
LINE, INK = "#0b0b01", "#0b0b02"
SERIES = [f"#0a0a0{index}" for index in range(SERIES_COLOURS)]


def drawing(title: str, steps: tuple[float, float], draw: Callable[[Any], None], doubling: bool = False) -> Markup:
    """What `draw` draws on axes over the training steps, or other whole numbers, from the first to the last of `steps`.

    The title is not drawn; it keeps the ids in the drawing apart from those of other charts on a page. The axis of
    steps is logarithmic where they are `doubling`: one mark for each power of two.
    """
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9}):
        figure = Figure(figsize=(5.8, 2.7), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        if doubling:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.grid(axis="y", color=LINE, linewidth=0.8)
        axes.tick_params(length=0, labelcolor=INK, pad=5, which="both")
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set(visible=side == "bottom", color=LINE)
        room = max(1, steps[1] - steps[0]) * 0.02
        if doubling:
            axes.set_xlim(steps[0] / 1.1, steps[1] * 1.1)
        else:
            axes.set_xlim(steps[0] - room, steps[1] + room)
        text = io.StringIO()
        # Without metadata matplotlib writes no block of addresses into the drawing.
        figure.savefig(
            text,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")),
        )
    return Markup(_for_page(text.getvalue()))


def _for_page(svg: str) -> str:
    """Only the <svg> element, without fixed size, namespaces or ids that another drawing could have too."""
    svg = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box is not None
    svg = re.sub(r"<svg[^>]*>", f"<svg {view_box[0]} aria-hidden='true'>", svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = svg.replace("xlink:href", "href")
    used = set(re.findall(r"#([\w-]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda name: name[0] if name[1] in used else "", svg)
    for index, colour in enumerate(SERIES):
        svg = svg.replace(colour, f"var(--series-{index})")
    return svg.replace(LINE, "var(--line)").replace(INK, "var(--ink-soft)")

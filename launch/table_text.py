"""Rows of the table of `medreport plan` as text: lines of JSON, or of a table in Markdown."""

from collections.abc import Iterator
from typing import Any

from common.io.text import json_text


def print_table(rows: Iterator[dict[str, Any]], form: str) -> None:
    """Print each row as soon as it is known, as a line of JSON or of a table in Markdown."""
    columns: list[str] = []
    for row in rows:
        if form == "jsonl":
            print(json_text(row, "plan"), flush=True)
            continue
        cells = markdown_cells(row)
        if not columns:
            columns = list(cells)
            print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        print(f"| {' | '.join(cells.values())} |", flush=True)


def markdown_cells(row: dict[str, Any]) -> dict[str, str]:
    """A row by the headings of its table. A bound of 10% of the time or less of a kind is not named."""
    kinds = sorted(row["bytes"].items(), key=lambda one: -one[1])
    shown = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in kinds if size >= 5e7)
    program = row["compiled"] or "here"
    same = program.partition(":")[0] == row["topology"].partition(":")[0]
    most = "" if program == "here" else "at most " if same else "about "
    cells = {
        "preset": f"`{row['preset']}`",
        "topology": f"`{row['topology']}`",
        "mesh": mesh_text(row["mesh"]),
        "batch": f"{row['size']:,} ({row['micro_batch']})" + (" +" if row["size"] > row["preset_batch"] else ""),
        "fits": "yes" if row["fits"] else "no",
        "GB a device": f"{most}{row['bytes_per_device'] / 1e9:.1f} of {row['usable_bytes'] / 1e9:.1f}: {shown}",
    }
    if "seconds" not in row:
        return (
            cells
            | dict.fromkeys(("TFLOPs", "GB received", "at least", "without overlap", "bound by"), "")
            | {"program": "not compiled"}
        )
    between = row["between_nodes_bytes"]
    received = [
        f"{kind} {size / 1e9:.2f}" + (f" ({between[kind] / 1e9:.2f})" if kind in between else "")
        for kind, size in sorted(row["received_bytes"].items(), key=lambda one: -one[1])
        if size >= 5e6
    ]
    return cells | {
        "TFLOPs": digits(row["flops_per_device"] / 1e12),
        "GB received": ", ".join(received),
        "at least": duration(row["seconds_at_least"]),
        "without overlap": duration(row["seconds_without_overlap"]),
        "bound by": row["bound_by"],
        "program": row["compiled"],
    }


def digits(value: float) -> str:
    """A number in three digits, or more where it has more before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """Seconds in three digits, in milliseconds below a tenth."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds:.3g} s"


def mesh_text(mesh: dict[str, int]) -> str:
    """Sizes of data, fsdp and tensor."""
    return " x ".join(str(mesh[axis]) for axis in ("data", "fsdp", "tensor"))

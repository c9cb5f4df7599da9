"""The notebook of the documents: its cells run one after the other, as Jupyter would run them.

`python -m tests.notebook` runs it and stores the outputs in it, without Jupyter.
"""

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def read_notebook() -> dict[str, Any]:
    """The notebook as it is stored."""
    return json.loads(NOTEBOOK.read_text("utf-8"))


def run_cells(content: dict[str, Any], **sizes: int) -> dict[str, Any]:
    """Run the code cells and store their outputs in them. Returns the names that they set.

    `sizes` replace numbers that the first cell sets.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    names: dict[str, Any] = {"__name__": "__main__"}
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)
        if number == 1:
            names |= sizes
        cell["execution_count"], cell["outputs"] = number, []
        if text := said.getvalue():
            cell["outputs"].append({"name": "stdout", "output_type": "stream", "text": text.splitlines(True)})
        for figure in map(plt.figure, plt.get_fignums()):
            picture = io.BytesIO()
            figure.savefig(picture, format="png", dpi=90)
            data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
            cell["outputs"].append({"data": data, "metadata": {}, "output_type": "display_data"})
        plt.close("all")
    return names


def main() -> None:
    """Run the notebook and store it with its outputs."""
    content = read_notebook()
    run_cells(content)
    NOTEBOOK.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(f"{NOTEBOOK}: run", file=sys.stderr)


if __name__ == "__main__":
    main()

"""What the site has beside its Markdown: formulas as MathML, help of commands, the notebook, files of the top level.

Formulas are fences named `math`, which GitHub draws too. `<!-- help: retsta train -->` becomes what that command
prints for `--help`. Nothing is loaded from a network, when the site is built or when it is read.
"""

import contextlib
import html
import importlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SCRIPTS = {
    "retsta": "retsta_jax.cli",
    "unicross": "unicross_jax.cli",
    "deer": "deer_jax.cli",
    "medreport": "launch.cli",
}
HELP = re.compile(r"^<!-- help: (.+) -->$", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let fences named `math` be formulas."""
    fence = {"name": "math", "class": "math", "format": formula}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def formula(source: str, *_: Any, **__: Any) -> str:
    """The formula as MathML, which browsers draw without a script."""
    return convert(source.strip(), display="block")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files."""
    made = {
        "tutorials/notebook.md": notebook(json.loads((ROOT / "docs" / "notebook.ipynb").read_text("utf-8"))),
        "contributing.md": (ROOT / "CONTRIBUTING.md")
        .read_text("utf-8")
        .replace("](docs/", "](")
        .replace("](SECURITY.md", "](security.md"),
        "security.md": (ROOT / "SECURITY.md").read_text("utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text("utf-8"),
    }
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the help that the page asks for."""
    return HELP.sub(lambda found: help_section(found[1].split()), markdown)


def help_section(words: list[str]) -> str:
    """The help of a command, under its name where it is not that of a whole script."""
    title = f"### {' '.join(words)}\n\n" if len(words) > 1 else ""
    return title + fenced(help_of(words), "text")


def help_of(words: list[str]) -> str:
    """What a command prints for `--help`. Raises RuntimeError where it does not end well."""
    os.environ |= {"COLUMNS": "110", "NO_COLOR": "1", "JAX_PLATFORMS": "cpu"}
    dispatch = importlib.import_module(SCRIPTS[words[0]]).dispatch
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            dispatch([*words[1:], "--help"])
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"{' '.join(words)} --help ended with {stop.code}") from stop
    return said.getvalue().replace(str(Path.home()), "~").strip()


def notebook(content: dict[str, Any]) -> str:
    """The cells of a notebook as Markdown, with the outputs that are stored in it."""
    parts = ["[Download the notebook](../notebook.ipynb)."]
    for cell in content["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(fenced(source, "python"))
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                parts.append(f'<img alt="output" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">')
            else:
                text = "".join(output.get("text") or data.get("text/plain", []))
                parts.append(f"<pre class='output'><code>{html.escape(text.rstrip())}</code></pre>")
    title = parts.pop(1)  # the first cell holds the title of the page
    return "\n\n".join([title, *parts])


def fenced(text: str, language: str) -> str:
    """The text as a block of code."""
    return f"````{language}\n{text}\n````"

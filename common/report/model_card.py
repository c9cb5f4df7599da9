"""`README.md` beside exported weights: a model card as the Hugging Face hub shows it.

It says what the weights were trained on, by which command and from which base, what they are for and what not, and,
after an evaluation, the scores beside those of the baselines. The licence is left to who publishes.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from common.io.exports import CARD, CARD_MARK
from common.io.inputs import read_bytes
from common.io.mirror import with_addresses
from common.io.numbers import interval_text, score_text
from common.io.outputs import write_whole
from common.io.tables import markdown_table
from common.options import Needs, changed_options, command_line, training_command
from common.process.first import is_first_process
from common.training.run import BaseWeights

EXPORTED = ("adapter", "model")  # folders of a run directory
RESULTS, NOT_YET = "## Results", "Not evaluated yet."
INTENDED = (
    "Research on the generation and standardization of medical reports. It is no medical device, and its output is no "
    "basis for a diagnosis or a treatment: reports can state findings that are not there, leave out findings that are, "
    "and confuse sides, degrees and negations."
)
LIMITS = (
    "Scores hold for the data that they were measured on. Other hospitals, devices, languages "
    "and patients give others; measure on your own data before any use. What the base model has learnt, its errors and "
    "biases, is in this model, too. A model can repeat parts of what it was trained on: do not publish one that was "
    "trained on reports of patients without the consent that this needs."
)


class ModelCard(NamedTuple):
    """What is known of weights when they are exported."""

    title: str
    base: BaseWeights
    data: str  # what it was trained on, in a line
    command: str  # that trains it
    library: str = "transformers"
    languages: Sequence[str] = ("en",)
    tags: Sequence[str] = ("medical",)


def training_of(program: str, presets: Mapping[str, Any], config: Any, needs: Sequence[Needs]) -> str:
    """The command that trains a config, in a run directory of any name."""
    return with_addresses(training_command(program, presets, config, Path("RUN"), needs))


def evaluation_of(system: str, chosen: Mapping[str, Any]) -> str:
    """The command that evaluates a run with these options, in a run directory of any name."""
    own = changed_options(chosen, {"split": "test", "limit": 0, "batch_size": 32})
    return with_addresses(command_line(f"{system} evaluate", {"run_dir": "RUN", **own}))


def results_in(run_dir: Path) -> str:
    """What the card of a run says of its results; to be read before the run is exported again."""
    for folder in _exports(run_dir):
        if (folder / CARD).is_file():
            _, found, after = _read(folder / CARD).partition(f"{RESULTS}\n")
            return after.partition("\n## ")[0].strip() if found else ""
    return ""


def write_cards(run_dir: Path, card: ModelCard, results: str = "") -> None:
    """Write the card beside each export of a run, with what it told of `results` before the export.

    What an export says of its own use is kept. Raises UserError.
    """
    if not is_first_process():
        return
    for folder in _exports(run_dir):
        file = folder / CARD
        told = re.sub(r"\A---\n.*?\n---\n", "", _read(file), flags=re.DOTALL).strip() if file.is_file() else ""
        write_whole(file, _text(card, "peft" if folder.name == "adapter" else card.library, results, told))


def add_results(
    run_dir: Path,
    systems: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    names: Sequence[str],
    split: str,
    command: str,
    notes: Sequence[str],
) -> None:
    """Put the scores `names` of systems, the model first, into the cards of a run in place of earlier ones.

    A run without a card, as of an earlier release, gets none. Raises UserError.
    """
    rows = [
        [name, *(interval_text(scores[one]) if one in scores else score_text(None) for one in names)]
        for name, scores in systems.items()
    ]
    parts = [f"On the {split} split, with 95% intervals by bootstrap over reports:", markdown_table(("", *names), rows)]
    parts += ["\n".join(f"- {note}" for note in notes), f"```\n{command}\n```"]
    for folder in _exports(run_dir):
        file = folder / CARD
        if not file.is_file():
            continue
        before, found, after = _read(file).partition(f"{RESULTS}\n")
        if found:
            rest = after.find("\n## ")
            ending = after[rest:] if rest >= 0 else ""
            write_whole(file, f"{before}{RESULTS}\n\n" + "\n\n".join(filter(None, parts)) + f"\n{ending}")


def _exports(run_dir: Path) -> list[Path]:
    return [run_dir / name for name in EXPORTED if (run_dir / name).is_dir()]


def _text(card: ModelCard, library: str, results: str, told: str) -> str:
    head = {
        "library_name": library,
        "base_model": card.base.name,
        "license": "other  # choose yours; that of the base model, and the terms of the data, hold as well",
        "language": f"[{', '.join(card.languages)}]",
        "tags": f"[{', '.join(card.tags)}]",
    }
    front = "".join(f"{name}: {value}\n" for name, value in head.items())
    libraries = ", ".join(f"{name} {version(name)}" for name in ("medreport-jax", "jax", "flax", "optax"))
    sections = {
        "Training": "\n".join(
            (
                f"- base model: {card.base.name} (SHA-256 of its weights: `{card.base.sha256}`)",
                f"- {with_addresses(card.data)}",
                f"- software: {libraries}",
                f"\n```\n{card.command}\n```",
            )
        ),
        "Results": results or NOT_YET,
        "Intended use": INTENDED,
        "Limits": LIMITS,
        "Loading": told,
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items() if text)
    return f"---\n{front}---\n\n{CARD_MARK}\n\n# {card.title}\n\n{body}\n"


def _read(file: Path) -> str:
    return read_bytes(file, "a model card").decode("utf-8", "replace")

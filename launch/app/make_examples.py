"""Make the example of the page that compares predictions: `python -m launch.app.make_examples`.

The shipped UniCrossAdapter reports the same drawn studies twice: as the scanner that it was trained on takes them, and
as a second one does, whose images are darker.
"""

from pathlib import Path
from typing import get_args

from common.command import run_cli
from common.data.images import resize_shorter
from common.data.readers import ImageStudy
from common.errors import Parser
from common.io.jsonl import write_rows
from common.io.terminal import say
from common.phantoms.source import draw_split
from common.phantoms.study import Scanner
from unicross_jax.config import EMBEDDED_RUN
from unicross_jax.report import generate_reports
from unicross_jax.task import encode
from unicross_jax.trained import load_trained

FOLDER = Path(__file__).parent / "examples"
STUDIES, SIZE = 60, 224


def main(argv: list[str]) -> None:
    """Write a file of predictions for each scanner."""
    Parser("python -m launch.app.make_examples", description="Write the example of two prediction files.").parse_args(
        argv
    )
    trained = load_trained(EMBEDDED_RUN)
    FOLDER.mkdir(exist_ok=True)
    for scanner in get_args(Scanner):
        phantoms = draw_split(0, "test", STUDIES, SIZE, scanner)
        studies = [ImageStudy(phantom.id, (), "", phantom.indication) for phantom in phantoms]
        examples, _ = encode(trained.config, trained.task, studies)
        views = [
            tuple(resize_shorter(view, trained.config.data.resize) for view in (phantom.frontal, phantom.lateral))
            for phantom in phantoms
        ]
        written = generate_reports(trained, examples, views)
        file = FOLDER / f"{scanner}-scanner.jsonl"
        write_rows(
            file,
            (
                {"id": phantom.id, "prediction": report.text, "reference": phantom.report}
                for phantom, report in zip(phantoms, written, strict=True)
            ),
        )
        say(f"{file}: {STUDIES} predictions")


if __name__ == "__main__":
    run_cli(main)

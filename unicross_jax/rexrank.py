"""`unicross rexrank INPUT.json OUTPUT.json IMAGES`: the inference entry that the ReXrank leaderboard calls.

The guideline of its second round names them: `--input_json_file`, `--save_json_file`, `--img_root_dir`. The input is
ReXrank's (`common.data.rexrank`); the output is the same with `model_prediction` in each study.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from common.data.images import Reading, resize_shorter
from common.data.readers import ImageStudy
from common.data.rexrank import add_predictions, indication_of, read_studies
from common.data.summary import data_line, say_data
from common.errors import UserError
from common.generation.memory import halved, slot_memory
from common.generation.processes import of_first
from common.io.locks import locked_file, owning
from common.io.outputs import check_output
from common.io.progress import counted
from common.io.safetensors import write_json
from common.io.terminal import printable, say
from unicross_jax.report import generate_reports
from unicross_jax.task import encode
from unicross_jax.trained import load_trained


@owning("output", locked_file)
def report_studies(input_file: Path, output: Path, images: Path, checkpoint: Path, batch_size: int = 32) -> None:
    """Report every study of the input. Raises UserError before anything is written.

    `batch_size`, the studies at a time on each device, changes the time alone. With several processes, each reads all
    images and reports a share of the studies; the first one writes.
    """
    check_output(output, input_file)
    studies = read_studies(input_file)
    trained = load_trained(checkpoint)
    data = trained.config.data
    chosen = {name: images_of(study, images, data.views) for name, study in studies.items()}
    if missing := [(name, file) for name, files in chosen.items() for file in files if not file.is_file()]:
        name, file = missing[0]
        raise UserError(
            f"{file}: no such file, of study {printable(name)} ({len(missing):,} are missing); name the folder of the "
            "images as the third argument"
        )
    say_data(data_line([input_file, images], "ReXrank", {"studies": len(studies)}), rows_on_stdout=True)
    reading = Reading(data.colour, data.dicom_contrast)
    read = [tuple(resize_shorter(reading.image(file), data.resize) for file in files) for files in chosen.values()]
    told = trained.config.model.conditioning == "causal"
    rows = [ImageStudy(name, (), "", indication_of(study) if told else "") for name, study in studies.items()]
    examples, _ = encode(trained.config, trained.task, rows)
    with slot_memory(halved("--batch-size", batch_size, used=-(-len(examples) // jax.device_count()))):
        texts = generate_reports(trained, examples, read, batch_size=batch_size, ids=list(studies))
        written = [report.text for report in counted(texts, len(examples), "reports")]

    def write() -> None:
        write_json(output, add_predictions(studies, dict(zip(studies, written, strict=True)), output))
        say(f"predictions: {output}", error=True)

    of_first(write)


def images_of(study: Mapping[str, Any], folder: Path, views: int) -> list[Path]:
    """The images that a model of so many views sees: the key image first, then the others."""
    paths = list(dict.fromkeys(path for path in (study.get("key_image_path", ""), *study["image_path"]) if path))
    return [folder / path.lstrip("/") for path in paths[:views]]

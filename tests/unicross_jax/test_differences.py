"""What an ablation says of the differences between its variants."""

import json

from common.io.jsonl import write_rows
from common.report.compare_command import main as compare
from unicross_jax.ablation import save_differences


def test_the_differences_between_variants_are_those_of_medreport_compare(tmp_path):
    reports = ["the heart is enlarged .", "no effusion .", "right effusion .", "the lungs are clear ."] * 5
    files = []
    for number, name in enumerate(("full model", "no-adapters")):
        folder = tmp_path / f"{name.replace(' ', '-')}-7"
        folder.mkdir()
        texts = reports[number:] + reports[:number]
        rows = zip(texts, reports, strict=True)
        write_rows(
            folder / "predictions.jsonl",
            [{"id": str(at), "prediction": said, "reference": true} for at, (said, true) in enumerate(rows)],
        )
        files.append(str(folder / "predictions.jsonl"))
    save_differences(tmp_path, ["full model", "no-adapters"], 7, None)
    compare([*files, "--output", str(tmp_path / "compared.json")])
    own, other = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("differences", "compared"))
    assert [*own["systems"]] == ["full model", "no-adapters"]
    assert [*own["systems"].values()] == [*other["systems"].values()]
    values = ("score", "value", "low", "high", "p", "corrected", "holds")
    assert [[row[name] for name in values] for row in own["differences"]] == [
        [row[name] for name in values] for row in other["differences"]
    ]
    assert own["differences"][0]["holds"]
    assert "no-adapters" in (tmp_path / "differences.html").read_text()

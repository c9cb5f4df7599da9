"""The page of a training as it goes: its reports and curves, and that the training does not depend on it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from common.clinical.report_labeler import PhantomRules
from common.data.readers import ImageStudy
from common.data.splits import Split
from common.report.findings import label_finder
from common.report.live import REFRESH, Live, Reference, live_page, study_page, thinned
from common.training.evaluation import LOSS, Best
from tests.common.test_report_page import HOSTILE, Reader
from tests.common.test_train_loop import run

TEXTS = ["The heart is enlarged. No pleural effusion.", "The lungs are clear.", "Edema.", "Fracture.", "Mass."]


def write_rows(run_dir: Path, last: int) -> None:
    rows = [
        {"step": step, "loss": 3 / step, **({"val/F1": 0.5} if step % 2 == 0 else {})} for step in range(1, last + 1)
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    timings = [{"step": row["step"], "step_seconds": 2.0, "tokens_per_second": 5e3} for row in rows]
    (run_dir / "timings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in timings))


def page_of(run_dir: Path) -> str:
    return (run_dir / "live.html").read_text(encoding="utf-8")


def clocked(run_dir: Path, **more) -> tuple[Live, list[float]]:
    clock = [0.0]

    def reference(number: int) -> Reference:
        return Reference(f"study-{number}", TEXTS[number])

    return live_page(run_dir, "Title", reference, now=lambda: clock[0], **more), clock


def test_the_page_shows_the_first_and_the_latest_reports_with_their_findings_and_rewards(tmp_path: Path) -> None:
    page, clock = clocked(tmp_path, find=label_finder(PhantomRules(), TEXTS))
    for step, text in ((2, "Small pleural effusion."), (4, "Clear."), (6, "Cardiac enlargement. No effusion.")):
        write_rows(tmp_path, step)
        page.keep(step, {number: (text, 0.25) for number in range(5)})
        page.watch(step, 12, False)
        clock[0] += REFRESH
    words = Reader(page_of(tmp_path)).words()
    assert "after step 6 · reward 0.250" in words
    assert "after step 2 · reward 0.250" in words
    assert "after step 4 ·" not in words
    first = words[words.index("study-0") : words.index("study-1")]
    latest, earliest = first.split("after step 2")
    assert "✓ right" in latest
    assert "missed" not in latest
    assert "+ invented Pleural Effusion" in earliest
    assert "study-3" in words
    assert "study-4" not in words
    assert "step 6 of 12" in words
    assert "about 0:00:12" in words
    assert "5,000 tokens/s" in words
    assert "val/F1 0.500 after step 6; 0.500 after 2" in words
    assert page_of(tmp_path).count("<svg") == 2  # loss and validation


def test_the_page_loads_itself_anew_until_the_training_has_finished(tmp_path: Path) -> None:
    write_rows(tmp_path, 2)
    page, _ = clocked(tmp_path)
    refresh = f'<meta http-equiv="refresh" content="{REFRESH}">'
    page.watch(2, 4, False)
    assert refresh in page_of(tmp_path)
    page.watch(4, 4, True)
    assert 'http-equiv="refresh"' not in page_of(tmp_path)
    assert "Finished" in page_of(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"live.html", "metrics.jsonl", "timings.jsonl"}


def test_pages_are_drawn_as_far_apart_as_they_are_loaded(tmp_path: Path) -> None:
    write_rows(tmp_path, 2)
    page, clock = clocked(tmp_path)
    page.watch(1, 9, False)
    clock[0] += REFRESH - 1
    page.watch(2, 9, False)
    assert "step 1 of 9" in Reader(page_of(tmp_path)).words()
    clock[0] += 1
    page.watch(3, 9, False)
    assert "step 3 of 9" in Reader(page_of(tmp_path)).words()


def test_without_reports_or_a_labeler_there_are_curves_alone(tmp_path: Path) -> None:
    write_rows(tmp_path, 2)
    split = Split([ImageStudy("0", (), TEXTS[0])], [(np.zeros((8, 8), np.uint8),)])
    study_page(tmp_path, "DEER", "phantom", split, None).watch(2, 2, True)
    html = page_of(tmp_path)
    assert "<svg" in html
    assert "DEER: phantom radiographs" in html
    assert "What the model writes" not in html
    assert "findings" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)


def test_the_images_of_a_study_stand_beside_its_reports(tmp_path: Path) -> None:
    write_rows(tmp_path, 2)
    images = [(np.full((8, 8), number, np.uint8), np.zeros((8, 6), np.uint8)) for number in range(2)]
    split = Split([ImageStudy(str(number), (), TEXTS[number]) for number in range(2)], images)
    page = study_page(tmp_path, "UniCrossAdapter", "rows", split, PhantomRules())
    page.keep(2, {1: ("The lungs are clear.", None)})
    page.watch(2, 2, True)
    html = page_of(tmp_path)
    assert html.count("data:image/jpeg") == 2
    assert 'aria-label="Radiograph 1, view 2 of 2"' in html
    assert "✓ right No Finding" in Reader(html).words()
    assert "report text and images" in html


def test_nothing_that_a_model_writes_becomes_markup(tmp_path: Path) -> None:
    write_rows(tmp_path, 2)
    page = live_page(tmp_path, HOSTILE, lambda number: Reference(HOSTILE, HOSTILE, "en", HOSTILE))
    page.keep(2, {0: (HOSTILE + " more", None)})
    page.watch(2, 2, True)
    reader = Reader(page_of(tmp_path))
    assert "script" not in reader.tags
    assert not [name for name, _ in reader.attributes if name.startswith("on")]
    assert not re.search(r"https?:|@import", page_of(tmp_path))


def test_a_page_that_cannot_be_written_is_said_and_no_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_rows(tmp_path, 2)
    (tmp_path / "live.html").mkdir()
    page, _ = clocked(tmp_path)
    page.keep(2, {0: ("secret", None)})
    page.watch(2, 2, True)
    page.watch(2, 2, True)
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert said.err.startswith(f"warning: {tmp_path / 'live.html'}: not written (")
    assert "secret" not in said.err + said.out


def test_long_curves_keep_every_evaluation() -> None:
    rows = [{"step": step, **({"val/F1": 1.0} if step % 7 == 0 else {})} for step in range(1, 30_001)]
    kept = thinned(rows)
    assert [row for row in kept if "val/F1" in row] == [row for row in rows if "val/F1" in row]
    assert kept[0]["step"] == 1
    assert kept[-1]["step"] == 30_000
    assert len(kept) < 30_000 / 7 + 1500
    assert thinned([]) == []


def test_the_loop_shows_evaluated_steps_once_their_rows_are_logged_and_the_last_one(tmp_path: Path) -> None:
    seen = []

    def watch(step: int, total_steps: int, last: bool) -> None:
        rows = (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()
        seen.append((step, total_steps, last, json.loads(rows[-1])["step"]))

    state = run(tmp_path / "a", watch=watch)
    assert seen == [(2, 6, False, 2), (4, 6, False, 4), (6, 6, True, 6)]
    run(tmp_path / "a", watch=watch)
    assert len(seen) == 3  # a finished run draws nothing
    other = run(tmp_path / "b")
    assert state.trainable["w"].tolist() == other.trainable["w"].tolist()
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


def test_a_training_that_ends_early_has_a_last_step(tmp_path: Path) -> None:
    seen = []
    best = Best(LOSS, patience=1)
    run(tmp_path, watch=lambda step, total, last: seen.append((step, last)), best=best)
    assert seen[-1] == (4, True)
    assert all(not last for _, last in seen[:-1])

"""Differences between systems: Holm's correction against published values and its definition, p against the t-test."""

import itertools
import json

import numpy as np
import pytest
import scipy.stats

from common.errors import UserError
from common.metrics.bootstrap import mean_measure
from common.metrics.comparison import compare, holm, two_sided
from common.report.compare_command import main, system_names


def test_holm_is_that_of_r():
    """`p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")`."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.7])).tolist() == [1.0, 1.0]
    assert holm(np.array([])).tolist() == []


def test_holm_is_the_closed_test_of_bonferroni():
    """A hypothesis is rejected where every set of hypotheses with it in it is, by its smallest p times its size."""
    for p in np.random.default_rng(0).uniform(0, 0.3, (20, 5)):
        sets = [chosen for size in range(1, 6) for chosen in itertools.combinations(range(5), size)]
        closed = [max(min(1, len(one) * min(p[list(one)])) for one in sets if index in one) for index in range(5)]
        assert holm(p).tolist() == pytest.approx(closed)


def test_p_is_near_that_of_the_paired_t_test():
    generator = np.random.default_rng(1)
    for effect in (0.0, 0.1, 0.2):
        first, second = generator.normal(size=(2, 400))
        systems = {"a": [mean_measure("mean", first + effect)], "b": [mean_measure("mean", second)]}
        [found] = compare(systems, ["mean"], resamples=4000)
        expected = scipy.stats.ttest_rel(first + effect, second).pvalue
        assert found.p == pytest.approx(expected, abs=0.03)
        assert found.corrected == found.p
        assert found.value == pytest.approx((first + effect - second).mean())
        assert found.low < found.value < found.high


def test_a_p_is_never_zero_and_never_above_one():
    assert two_sided(np.full(99, 0.5)) == 0.02
    assert two_sided(np.zeros(99)) == 1.0
    assert two_sided(np.array([-1.0, 1.0])) == 1.0


def test_equal_systems_seldom_differ_once_all_comparisons_are_counted():
    generator = np.random.default_rng(2)
    corrected = uncorrected = 0
    for _ in range(100):
        systems = {name: [mean_measure("mean", generator.normal(size=60))] for name in "abcd"}
        found = compare(systems, ["mean"], resamples=400)
        corrected += any(row.holds for row in found)
        uncorrected += any(row.p < 0.05 for row in found)
    assert corrected <= 12  # 5 are expected; more than 12 come in one of a thousand such tests
    assert uncorrected > corrected


def write(folder, name: str, predictions: list[str], references: list[str]) -> str:
    file = folder / name / "predictions.jsonl"
    file.parent.mkdir(exist_ok=True)
    rows = zip(predictions, references, strict=True)
    lines = [json.dumps({"id": id_, "prediction": said, "reference": meant}) for id_, (said, meant) in enumerate(rows)]
    file.write_text("\n".join(lines), encoding="utf-8")
    return str(file)


WORDS = ["heart", "size", "is", "normal", "no", "pleural", "effusion", "lungs", "are", "clear", "mild", "edema"]


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Of a good system, one like it, and a poor one."""
    generator = np.random.default_rng(3)
    references = [" ".join(generator.choice(WORDS, 12)) for _ in range(60)]

    def said(share: float) -> list[str]:
        return [
            " ".join(generator.choice(WORDS) if generator.random() < share else word for word in text.split())
            for text in references
        ]

    return [write(tmp_path, name, said(share), references) for name, share in (("a", 0.2), ("b", 0.2), ("c", 0.6))]


def test_the_command_prints_and_draws_what_holds(files, tmp_path, capsys):
    page, output = tmp_path / "page.html", tmp_path / "out.json"
    words = ["--scores", "coco/BLEU-1", "coco/ROUGE-L", "--page", str(page), "--output", str(output)]
    main([*files, *words])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0] == "| score | systems | difference (95%) | p | p, corrected | holds |"
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["no |", "yes |", "yes |"] * 2
    assert "4 of 6 differences hold at 5%" in said.err
    result = json.loads(output.read_text())
    assert [(row["first"], row["second"], row["holds"]) for row in result["differences"][:3]] == [
        ("a", "b", False),
        ("a", "c", True),
        ("b", "c", True),
    ]
    scores = result["systems"]
    first = result["differences"][1]
    assert first["value"] == pytest.approx(scores["a"]["coco/BLEU-1"] - scores["c"]["coco/BLEU-1"], abs=2e-6)
    text = page.read_text()
    assert text.count('class="axis holds"') == 4
    assert text.count('class="axis"') == 2
    main([*files, *words])  # its own outputs are replaced


def test_a_labeler_adds_clinical_scores(tmp_path, capsys):
    references = ["Cardiomegaly is seen .", "No pleural effusion .", "There is edema .", "The lungs are clear ."]
    files = [write(tmp_path, name, texts, references) for name, texts in (("a", references), ("b", references[::-1]))]
    main([*files, "--labeler", "phantom"])
    assert "promptmrg/F1 | a - b |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows[:-1], "has no row of id 59, which"),
        (lambda rows: [*rows, {**rows[0], "id": "new"}], "id 'new' is not in"),
        (lambda rows: [{**rows[0], "reference": "other"}, *rows[1:]], "the reference of id 0 is another one than in"),
    ],
)
def test_other_studies_are_refused(files, change, said, tmp_path):
    rows = [json.loads(line) for line in (tmp_path / "b" / "predictions.jsonl").read_text().splitlines()]
    (tmp_path / "b" / "predictions.jsonl").write_text("\n".join(map(json.dumps, change(rows))))
    with pytest.raises(UserError) as refused:
        main(files)
    assert said in str(refused.value)
    assert str(refused.value).startswith(files[1])


def test_what_cannot_be_compared_is_said(files):
    for words, said in (
        (files[:1], "one file; name those of two or more systems"),
        ([files[0], files[0]], "two files are the same"),
        ([*files, "--scores", "coco/BLEU4"], r"--scores coco/BLEU4: no such score \(did you mean coco/BLEU-4\?\)"),
    ):
        with pytest.raises(UserError, match=said):
            main(words)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("runs/a/predictions.jsonl", "runs/b/predictions.jsonl"), ["a", "b"]),
        (("a.jsonl", "deep/b.jsonl"), ["a", "b"]),
        (("x/a/p.jsonl", "y/a/p.jsonl"), ["x", "y"]),
        (("x/a.jsonl", "y/a.jsonl", "y/b.jsonl"), ["x/a", "y/a", "y/b"]),
    ],
)
def test_systems_are_named_by_what_tells_their_files_apart(paths, names, tmp_path):
    assert system_names([tmp_path / path for path in paths]) == names

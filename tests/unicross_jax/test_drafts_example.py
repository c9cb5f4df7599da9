"""The documented example: the picture of a report coloured by drafts."""

from xml.etree import ElementTree

import pytest

from tests.examples import load_example


@pytest.fixture(scope="module")
def example():
    return load_example("draw_drafts")


def test_the_example_draws_a_report(example, tmp_path, capsys):
    output = tmp_path / "drafts.svg"
    example.main(["--output", str(output), "--studies", "3", "--table-reports", "40", "--slots", "2"])
    said = capsys.readouterr().out.split()
    tokens, passes = int(said[1]), int(said[4])
    classes = [entry.get("class", "") for entry in ElementTree.parse(output).iter()]
    assert passes < tokens
    assert classes.count("draft") == tokens - passes + 1  # and one in the legend
    assert classes.count("pass") == passes + 1


def test_text_is_escaped(example):
    drawn = example.draw(example.Coloured(["<5", "mm", "&", "end"], [False, True, True, False]))
    texts = [entry.text for entry in ElementTree.fromstring(drawn).iter() if "ink" in entry.get("class", "")]
    assert "4 tokens in 2 passes" in texts
    assert texts[-4:] == ["<5", "mm", "&", "end"]

"""The table of systems: means over seeds with the t interval, the score's own interval of one seed, empty cells."""

from common.io.tables import score_lines
from common.report.table import as_markdown


def test_means_intervals_and_empty_cells():
    table = {
        "several": [{"F1": {"value": value}} for value in (0.1, 0.2, 0.3)],
        "one": [{"F1": {"value": 0.5, "low": 0.4, "high": 0.6}, "BLEU": {"value": 0.25}}],
    }
    # Deviation 0.1, so 0.1 / sqrt(3) x 4.302653 (t with 2 degrees of freedom at 97.5%).
    assert as_markdown(table, ["F1", "BLEU", "unknown"]).splitlines() == [
        "|  | F1 | BLEU |",
        "|---|---|---|",
        "| several | 0.200 ± 0.248 |  |",
        "| one | 0.500 [0.400, 0.600] | 0.250 |",
    ]


def test_lines_of_scores_leave_out_what_is_not_known():
    systems = {"this run": {"F1": {"value": 0.5, "low": 0.4, "high": 0.6}, "BLEU": {"value": None}}, "constant": {}}
    lines = score_lines(systems, ["F1", "BLEU"]).split("\n")
    assert lines == [f"{'this run':>24}  F1 0.500", f"{'constant':>24}  "]
    assert score_lines(systems, ["F1"], intervals=True).split("\n")[0].endswith("F1 0.500 [0.400, 0.600]")

"""The page a run ends in: one HTML file that needs nothing else."""

from common.report.page import Example, Page, write_report

__all__ = ["Example", "Page", "write_report"]

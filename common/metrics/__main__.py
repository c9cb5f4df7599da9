"""The former name of `medreport score`."""

from common.scripts import run_former

if __name__ == "__main__":
    run_former("common.metrics", "score", "common.clinical.score_command:main")

"""The former name of `medreport plan` and `medreport bench`."""

from common.scripts import run_former

if __name__ == "__main__":
    run_former("launch")

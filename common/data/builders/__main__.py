"""The former name of `medreport prepare`."""

from common.scripts import run_former

if __name__ == "__main__":
    run_former("common.data.builders", "prepare", "common.data.builders.command:main")

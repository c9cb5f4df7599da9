"""The former name of `medreport decode`."""

from common.scripts import run_former

if __name__ == "__main__":
    run_former("common.decode", "decode", "common.generation.command:main")

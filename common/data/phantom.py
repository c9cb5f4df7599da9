"""The former name of `medreport phantoms`."""

from common.scripts import run_former

if __name__ == "__main__":
    run_former("common.data.phantom", "phantoms", "common.phantoms.phantom:main")

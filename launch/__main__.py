"""The former name of `medreport plan` and `medreport bench`."""

import sys

from common.scripts import warn_of_former
from launch.cli import main

if __name__ == "__main__":
    warn_of_former(" ".join(["launch", *sys.argv[1:2]]), *sys.argv[1:2])
    main()

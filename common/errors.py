"""What a user sees when the input is wrong: one line, exit code 2, no traceback (`common.command`)."""

import argparse
from typing import Any, NoReturn


class UserError(Exception):
    """Bad input or environment. The message says what, where, what was expected and what to do, in one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a UserError, and which takes no abbreviated names."""

    def __init__(self, program: str, **options: Any):
        super().__init__(program, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")

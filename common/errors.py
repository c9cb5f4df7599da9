"""What a user sees for bad input: one line, exit code 2, no traceback (`common.command`)."""

import argparse
import difflib
from collections.abc import Iterable
from typing import Any, NoReturn

from common.options_only import end_of_options


class UserError(Exception):
    """Bad input or environment. The message says what, where, what was expected and what to do, in one line."""


class MissingPackage(UserError):
    """A package that is not installed, which all files of a kind need: not the fault of one record."""


class ChangedInput(UserError):
    """A file that is no longer as it was when a command began to read it: not the fault of one record."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a UserError, and which takes no abbreviated names."""

    def __init__(self, program: str, **options: Any):
        super().__init__(program, allow_abbrev=False, **options)

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """As argparse has it. Raises UserError for what it does not know, and ends a command that is only checked."""
        chosen = super().parse_args(*arguments, **options)
        end_of_options()
        return chosen

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest of those that there are, or nothing."""
    known = {one.lstrip("-"): one for one in names}  # the dashes of options are alike, which says nothing
    near = difflib.get_close_matches(name.lstrip("-"), known, 1)
    return f" (did you mean {known[near[0]]}?)" if near else ""

"""What a user sees for bad input: one line, exit code 2, no traceback (`common.command`)."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from common.options_only import end_of_options


class UserError(Exception):
    """Bad input or environment. The message says what, where, what was expected and what to do, in one line."""


class MissingPackage(UserError):
    """A package that is not installed, which all files of a kind need: not the fault of one record."""


class ChangedInput(UserError):
    """Data that are no longer as they were when a command began, or out of reach: not the fault of one record."""


class RepeatedImage(UserError):
    """An image that its study has twice."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a UserError, and which takes no abbreviated names."""

    def __init__(self, program: str, **options: Any):
        super().__init__(program, allow_abbrev=False, **options)

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """As argparse has it. Raises UserError for what it does not know, and ends a command that is only checked."""
        words = list(arguments[0] if arguments and arguments[0] is not None else options.get("args") or sys.argv[1:])
        self._check_names(words)
        chosen = super().parse_args(*arguments, **options)
        end_of_options()
        return chosen

    def parse_known_args(self, *arguments: Any, **options: Any) -> Any:
        """As argparse has it. Raises UserError for an option that was given with one dash for two."""
        words = list(arguments[0] if arguments and arguments[0] is not None else options.get("args") or sys.argv[1:])
        for word in words[: words.index("--") if "--" in words else None]:
            option = word.partition("=")[0]
            if len(option) > 2 and option[1] != "-" and f"-{option}" in self._option_string_actions:
                self.error(f"{option}: unknown option (did you mean -{option}?)")
        return super().parse_known_args(*arguments, **options)

    def _check_names(self, words: Sequence[str]) -> None:
        """Raise UserError for the first option that there is none of; argparse would name what is missing first."""
        if self._subparsers is not None or {"-h", "--help"} & set(words):  # the options may be those of a subparser
            return
        for word in words[: words.index("--") if "--" in words else None]:
            option = word.partition("=")[0]
            if option.startswith("--") and " " not in word and option not in self._option_string_actions:
                self.error(f"{option}: unknown option{did_you_mean(option, self._option_string_actions)}")

    def first_word_apart(self, words: Sequence[str]) -> list[str]:
        """The words from the first on that is no option, nor the value of one; none where an option is unknown."""
        at = 0
        while at < len(words) and words[at].startswith("-"):
            option, equals, _ = words[at].partition("=")
            action = self._option_string_actions.get(option)
            if action is None:
                return []
            at += 1 if equals or action.nargs == 0 else 2
        return list(words[at:])

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}; see {self.prog} --help")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The end of a message on an unknown name: the nearest of those that there are, or nothing."""
    known = {one.lstrip("-"): one for one in names}  # the dashes of options are alike, which says nothing
    near = difflib.get_close_matches(name.lstrip("-"), known, 1)
    return f" (did you mean {known[near[0]]}?)" if near else ""

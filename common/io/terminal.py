"""Makes foreign text, such as a name from an archive or a value from a file, safe to show."""

import sys
import unicodedata

from common.io.mirror import with_addresses

LONGEST = 200  # characters of one foreign value in a message
# Controls, formats (bidirectional and zero-width marks among them), unpaired surrogates, private use, and separators of
# lines and paragraphs: what moves a cursor, hides, reorders text or breaks a line.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def is_visible(character: str) -> bool:
    """Whether a character shows as itself and leaves the text around it as it is."""
    return unicodedata.category(character) not in _UNSAFE


def printable(value: object, limit: int = LONGEST) -> str:
    """`value` in one line of at most about `limit` characters, in which every character shows.

    What is not visible appears as its escape (`\\x1b`, `\\u202e`), so that a terminal shows it instead of obeying it.
    Of longer text the two ends are shown, and between them how many characters were left out.
    """
    text = str(value)
    if (left_out := len(text) - limit) > 0:
        end = limit // 3
        text = f"{text[: limit - end]} ... ({left_out:,} more characters) ... {text[len(text) - end :]}"
    if text.isprintable():
        return text
    return "".join(map(_shown, text))


def say(text: object, *, error: bool = False) -> None:
    """Print text that may hold foreign names, line by line as `printable` shows it, to standard output or error."""
    lines = (printable(line, limit=10_000) for line in with_addresses(str(text)).split("\n"))
    print("\n".join(lines), file=sys.stderr if error else sys.stdout, flush=True)


def _shown(character: str) -> str:
    return character if is_visible(character) else character.encode("unicode_escape").decode("ascii")

"""Foreign text, such as a name from an archive or a value from a file, made safe to show in one line."""

import unicodedata

LONGEST = 200  # characters of one foreign value in a message
# Categories that move the cursor, hide or reorder text: controls, formats (bidirectional marks among them),
# unpaired surrogates, private use, and separators of lines and paragraphs.
_UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def printable(value: object, limit: int = LONGEST) -> str:
    """`value` as text without control characters, bidirectional marks or line ends, at most `limit` characters.

    What is unsafe appears as its escape (`\\x1b`, `\\u202e`), so that a terminal or a page shows it instead of obeying.
    Of a longer value the first characters are shown, and how many were left out.
    """
    text = str(value)
    left_out = max(0, len(text) - limit)
    shown = "".join(map(_visible, text[:limit] if left_out else text))
    return f"{shown}... ({left_out:,} more characters)" if left_out else shown


def _visible(character: str) -> str:
    if unicodedata.category(character) not in _UNSAFE:
        return character
    return character.encode("unicode_escape").decode("ascii")

"""Which texts a regular expression matches in full; run by `common.io.bounded`, because matching may never end."""

import json
import re
import sys


def matches(pattern: str, texts: list[str]) -> dict[str, object]:
    """{"matches": [bool, ...]}, or {"error": why it is not a regular expression}."""
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        return {"error": str(error)}
    return {"matches": [compiled.fullmatch(text) is not None for text in texts]}


if __name__ == "__main__":
    json.dump([matches(pattern, texts) for pattern, texts in json.load(sys.stdin)], sys.stdout)

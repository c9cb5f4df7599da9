"""Standard codes as text: parsing model output, and the terminology to check it against.

A code is a path such as `Opacity/lung/base/left/mild`: the head is the finding, the rest its location and qualifiers.
"""

from collections import Counter
from collections.abc import Collection, Iterable

from common.data.records import ReportPair


def parse_codes(text: str) -> frozenset[str]:
    """The codes of a text that has one per line, with regular white space and without blank lines."""
    codes = (" ".join(line.split()) for line in text.splitlines())
    return frozenset(code for code in codes if code)


def head(code: str) -> str:
    """The part before the first slash: `Opacity` of `Opacity/lung/base/left/mild`."""
    return code.split("/", 1)[0].strip()


def heads(codes: Iterable[str]) -> frozenset[str]:
    """The distinct heads of some codes."""
    return frozenset(head(code) for code in codes)


def terminology(pairs: Iterable[ReportPair]) -> list[str]:
    """Every code of the targets, the most frequent first, then by code point. Pass the training split only."""
    frequency = Counter(code for pair in pairs for code in parse_codes(pair.target))
    return sorted(frequency, key=lambda code: (-frequency[code], code))


def terminology_validity(predictions: Iterable[Collection[str]], terms: Collection[str]) -> float:
    """Share of the generated codes that the terminology has; 0 where no code was generated at all."""
    known = frozenset(terms)
    generated = [code for codes in predictions for code in codes]
    return sum(code in known for code in generated) / len(generated) if generated else 0.0

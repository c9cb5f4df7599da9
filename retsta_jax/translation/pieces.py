"""The pieces of a translated report, put in the order of their new language, and written down."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.data.records import Language

BREAKS = ("colon", "newline", "stop", "semicolon", "comma", "list")  # the strongest of several is written
MODIFIERS = ("degree", "site", "place")  # "place": a term that states nothing by itself
PHRASE = ("term", "measure", *MODIFIERS)  # what belongs to one finding
MARKS: dict[Language, dict[str, str]] = {
    "zh": {
        "colon": "：",
        "newline": "\n",
        "stop": "。",
        "semicolon": "；",
        "comma": "，",
        "list": "、",
        "open": "（",
        "close": "）",
    },
    "en": {
        "colon": ":",
        "newline": "\n",
        "stop": ".",
        "semicolon": ";",
        "comma": ",",
        "list": ",",
        "open": "(",
        "close": ")",
    },
}


@dataclass(frozen=True)
class Piece:
    """A piece with its text in the new language; `before` is that of a site before a finding.

    kind: term, place, degree, site, measure, eye, same, cue, conj, prep, word, remark, lead, bullet, open, close, one
    of BREAKS. Of a cue, `was` and `role` say where it stood and where it is to stand: before or behind its findings;
    `whole` is for one that is about all of an enumeration, not its last finding alone.
    """

    kind: str
    text: str = ""
    before: str = ""
    was: str = ""
    role: str = ""
    denies: bool = False
    whole: bool = False


def arranged(pieces: Sequence[Piece], to: Language) -> list[Piece]:
    """The pieces in the order of their new language, with the punctuation that it needs."""
    found = [piece for piece in pieces if piece.kind != "word" or piece.text]
    found = _behind_in_brackets(found) if to == "zh" else found
    found = _moved(found)
    found = _separated(found)
    return _enumerated([*_merged(found)], to)


def written(pieces: Sequence[Piece], to: Language, apart: bool = False) -> str:
    """The text of pieces. `apart`: Chinese places do not run into findings, with which they may be another term."""
    out = ""
    for index, piece in enumerate(pieces):
        following = pieces[index + 1].kind if index + 1 < len(pieces) else ""
        text = MARKS[to].get(piece.kind, piece.text)
        if piece.kind == "newline" and piece.text:  # what ended the line
            text = piece.text + text
        if piece.kind == "site" and piece.before and following in ("term", "degree", "place"):
            text = piece.before
        if apart and to == "zh" and piece.kind in ("site", "place") and following == "term":
            text += "处"
        if to == "en" and (not out or re.search(r"(?:[.\n]|\n- |^- |[0-9]\.) ?$", out)):
            text = text[:1].upper() + text[1:]
        out += _space(out, text, piece.kind, to) + text
    return out.strip()


def _space(out: str, text: str, kind: str, to: Language) -> str:
    if not out or not text or out.endswith(("\n", "(", "（", " ")) or kind == "newline":
        return ""
    if to == "zh":
        return " " if _is_latin(out[-1]) and _is_latin(text[0]) else ""
    if kind == "cue" and text in ("?",):
        return ""
    return "" if text[0] in ".,;:)" or out.endswith(" ?") or out == "?" else " "


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _behind_in_brackets(pieces: Sequence[Piece]) -> list[Piece]:
    """出血（颞上） for "haemorrhage in the superotemporal quadrant", 出血（右眼） for "haemorrhage OD"."""
    found: list[Piece] = []
    index = 0
    while index < len(pieces):
        piece = pieces[index]
        ahead = pieces[index + 1] if index + 1 < len(pieces) else None
        if piece.kind == "prep" and ahead and ahead.kind in ("site", "place", "eye"):
            found += [Piece("open"), ahead, Piece("close")]
            index += 2
        else:
            before = found[-1].kind if found else ""
            behind = piece.kind == "eye" and before in ("term", "measure", "close", "cue")
            if behind and _ends(ahead) and not (ahead and ahead.kind == "colon"):
                found += [Piece("open"), piece, Piece("close")]
            else:
                found.append(piece)
            index += 1
    return found


def _ends(piece: Piece | None) -> bool:
    return piece is None or piece.kind in BREAKS or piece.kind == "conj"


def _moved(pieces: Sequence[Piece]) -> list[Piece]:
    """Cues on the side of their findings where the new language has them."""
    found: list[Piece] = []
    waiting: Piece | None = None  # a cue that goes behind the finding that comes
    for index, piece in enumerate(pieces):
        if piece.kind == "cue" and piece.was == "behind" and piece.role == "before":
            start = _start(found, piece.whole)
            if not (start and found[start - 1].role == "before"):  # "possible X noted" is 可能X
                found.insert(start, piece)
            continue
        if piece.kind == "cue" and piece.was == "before" and piece.role == "behind":
            waiting = piece
            continue
        found.append(piece)
        follows = pieces[index + 1].kind if index + 1 < len(pieces) else ""
        if waiting and piece.kind in ("term", "measure", "close", "site") and follows not in (*PHRASE, "open", "close"):
            found.append(waiting)
            waiting = None
    return [*found, waiting] if waiting else found


def _start(found: Sequence[Piece], all_of_them: bool) -> int:
    """Where the finding begins that ends here; `all_of_them`: all that an enumeration has before it."""
    index, seen, joined = len(found), False, False
    while index:
        kind = found[index - 1].kind
        if kind == "close":
            while index and found[index - 1].kind != "open":
                index -= 1
            index -= 1
            continue
        if kind == "term" and seen and not all_of_them:
            break
        if kind == "conj" and all_of_them:
            joined = True
        elif all_of_them and (kind == "list" or (kind == "comma" and joined)):
            pass
        elif kind not in PHRASE:
            break
        seen = seen or kind in ("term", "site")
        index -= 1
    while index < len(found) and found[index].kind in ("comma", "list", "conj"):
        index += 1
    return index


def _separated(pieces: Sequence[Piece]) -> list[Piece]:
    """What runs on gets a comma between findings, a stop before an eye or a remark."""
    found: list[Piece] = []
    for piece in pieces:
        last = found[-1] if found else None
        if last and last.kind not in (*BREAKS, "conj", "open", "bullet", "lead", "prep", "word"):
            ended = last.kind in ("term", "measure", "close", "remark", "same") or last.role == "behind"
            if piece.kind in ("remark", "lead", "same", "bullet") or last.kind in ("remark", "same"):
                if piece.kind not in BREAKS and piece.kind != "close":
                    found.append(Piece("stop"))
            elif ended and piece.kind == "eye":
                found.append(Piece("stop"))
            elif ended and (piece.kind in ("term", *MODIFIERS) or (piece.kind == "cue" and piece.role == "before")):
                found.append(Piece("comma"))
        found.append(piece)
    return found


def _merged(pieces: Sequence[Piece]) -> Iterator[Piece]:
    """One break for several; none at the beginning, and only a stop at the end."""
    run: list[str] = []
    begun = False
    for piece in pieces:
        if piece.kind in BREAKS:
            run.append(piece.kind)
            continue
        if run and begun:
            yield from _breaks(run)
        if not (piece.kind == "conj" and (not begun or {"stop", "newline", "semicolon"} & set(run))):
            yield piece
            begun = True
        run = []
    if "stop" in run:
        yield Piece("stop")


def _breaks(run: Sequence[str]) -> Iterator[Piece]:
    strongest = min(run, key=BREAKS.index)
    if strongest == "colon" and "newline" in run:
        yield Piece("colon")
        yield Piece("newline")
    elif strongest == "newline" and ("stop" in run or "semicolon" in run):
        yield Piece("stop" if "stop" in run else "semicolon")
        yield Piece("newline")
    else:
        yield Piece(strongest)


def _enumerated(pieces: list[Piece], to: Language) -> list[Piece]:
    """A、B和C for "A, B and C"; "A and B" for A、B, which a denial or a doubt reaches over."""
    found = [*pieces]
    for index, piece in enumerate(pieces):
        ahead = pieces[index + 1].kind if index + 1 < len(pieces) else ""
        if piece.kind == "conj" and to == "zh" and ahead == "cue":  # of clauses, not of findings
            found[index] = Piece("comma")
        if piece.kind not in ("comma", "list"):
            continue
        if index + 1 < len(pieces) and pieces[index + 1].kind == "conj":
            found[index] = Piece("word")
            continue
        end = index + 1
        while end < len(pieces) and pieces[end].kind in (*PHRASE, "open", "close"):
            end += 1
        joins = pieces[end].kind if end < len(pieces) and end > index + 1 else ""
        if to == "zh" and joins in ("conj", "list", "comma") and _reaches_conj(pieces, index):
            found[index] = Piece("list")
        elif to == "en" and piece.kind == "list":
            if end == index + 1 or not _is_listed(pieces, index):
                found[index] = Piece("comma")
            elif joins not in ("list", "conj"):
                found[index] = Piece("conj", "or" if _is_denied(pieces, index) else "and")
        elif to == "en" and end > index + 1 and joins not in ("list", "conj", "cue") and _is_denied(pieces, index):
            found[index] = Piece("semicolon")  # an English denial would reach over a comma
    return [piece for piece in found if piece.kind != "word" or piece.text]


def _reaches_conj(pieces: Sequence[Piece], index: int) -> bool:
    for piece in pieces[index:]:
        if piece.kind == "conj":
            return True
        if piece.kind not in (*PHRASE, "open", "close", "comma", "list"):
            return False
    return False


def _is_listed(pieces: Sequence[Piece], index: int) -> bool:
    return index > 0 and pieces[index - 1].kind in (*PHRASE, "close")


def _is_denied(pieces: Sequence[Piece], index: int) -> bool:
    for piece in reversed(pieces[:index]):
        if piece.kind == "cue":
            return piece.denies
        if piece.kind not in (*PHRASE, "open", "close", "comma", "list", "conj"):
            return False
    return False

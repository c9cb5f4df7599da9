"""Slips of the keyboard and of input methods: to make them, and to read over them.

The first three letters of an English word stay, since they tell pre-, sub- and intraretinal apart; Chinese words of
laterality, degree and denial are never touched.
"""

import re
from collections.abc import Iterator

import numpy as np

from common.data.records import Language

KEPT = 3  # letters at the beginning of a word
SHORTEST = 6  # letters of a word that may have a slip

# Characters that pinyin or handwriting input confuses. None is a word about laterality, degree or denial.
CONFUSED_CHARACTERS: dict[str, str] = dict(
    pair
    for pair in zip(
        "膜渗斑脉萎缩盘裂孔脱瘤疣黄网糖病变血管增生出积混浊玻璃静硬棉绒絮肿萄葡豹纹格劈牵阻塞神经纤激巩络迂曲扩张囊样炎",
        "模参班麦委索盆列空托榴尤皇往唐并便雪官曾升处集浑独波离净应绵戎序种桃蒲包文隔霹迁组赛伸径千击工洛于屈括章襄洋言",
        strict=True,
    )
)

# A neighbour on the keyboard for each letter.
NEIGHBOUR_KEYS: dict[str, str] = dict(zip("abcdefghijklmnopqrstuvwxyz", "svxfrghjoklknmpowtdyibezux", strict=True))


def misspell(text: str, language: Language, rng: np.random.Generator) -> str:
    """The text with one slip, each place and each kind of slip equally likely; itself where it has no such place."""
    places = [*_places(text, language)]
    if not places:
        return text
    slips = [*_slips_at(text, places[int(rng.integers(len(places)))], language)]
    return slips[int(rng.integers(len(slips)))]


def misspellings(text: str, language: Language) -> set[str]:
    """Every text that `misspell` makes of this one."""
    return {slip for place in _places(text, language) for slip in _slips_at(text, place, language)} - {text}


def _places(text: str, language: Language) -> Iterator[int]:
    if language == "zh":
        yield from (place for place, character in enumerate(text) if character in CONFUSED_CHARACTERS)
        return
    for word in re.finditer(rf"[a-zA-Z]{{{SHORTEST},}}", text):
        yield from range(word.start() + KEPT, word.end() - 1)


def _slips_at(text: str, place: int, language: Language) -> Iterator[str]:
    """Two letters in the wrong order, the first left out, doubled, or its neighbour hit; in Chinese a confusion."""
    if language == "zh":
        yield text[:place] + CONFUSED_CHARACTERS[text[place]] + text[place + 1 :]
        return
    pair = text[place : place + 2]
    for slip in (pair[::-1], pair[1], pair[0] + pair, NEIGHBOUR_KEYS[pair[0].lower()] + pair[1]):
        yield text[:place] + slip + text[place + 2 :]

"""The words that say whether a finding is present, and in which eye, as regular expressions over normalised text.

Normalised text (`search.fold`) is of one letter case and width, has hyphens as spaces, and holds a mark in
place of every character of a term, so that a cue never lies within a term (有髓神经纤维, 未见明显异常).
"""

import re
from collections.abc import Iterable, Mapping

TERM = "\ue000"  # in place of each character of a term
PLACE = "\ue001"  # the same for terms that state nothing by themselves: anatomy, sites, degrees

STOP = r"[。;\n!]|\.(?![0-9])(?<!mod\.)(?<!approx\.)|<br ?/?>|&nbsp;|x{3,}|_x000d_|\|\|"

DENY_ZH = (
    "未见明显 未见明确 未见到 未见 未发现明显 未发现 未出现 未查见 未显示 未探及 未合并 未累及 未及 无明显 无明确 "
    "没有发现 没有看到 没看到 没有 不伴有 不伴 不见 否认 已排除 排除 无"
)
DENY_EN = (
    "no evidence of|no signs? of|no obvious|no definite|no apparent|no|without evidence of|without|w/o|negative for|"
    "absence of|free of|denies|does not show|did not show|do not show|neither|nor|nil|not"
)
DOUBT_ZH = (
    "不能除外 不除外 不能排除 不排除 考虑为 考虑 疑似 可疑 高度怀疑 怀疑 疑为 疑诊 疑 可能性大 可能为 可能有 可能是 "
    "可能 似为 倾向于 倾向 待排除 待排 待查 拟诊 除外待定"
)
DOUBT_EN = (
    "possible|possibly|probable|probably|likely|unlikely|suspicious for|suspicious of|suspicion of|suspected|suspect|"
    "cannot be excluded|cannot exclude|can't exclude|cannot rule out|could be|could represent|may be|may represent|"
    "might be|questionable|query|r/o|rule out|concerning for|concern for|presumed"
)
ASSERT_ZH = "可见 能见 见 显示 示 存在 有 呈 发现 提示 检出 合并"
ASSERT_EN = "there is|there are|shows?|showing|reveals?|demonstrates?|has|have"
# Behind what they are about.
ABSENT_EN = (
    "absent|not seen|not present|not noted|not identified|not detected|not found|not visible|ruled out|excluded|none"
)
PRESENT_EN = "noted|seen|present|visible|observed|identified|detected|evident"
BUT_ZH = "但是 但 然而 除外 除了 除 余"
BUT_EN = "but|however|except for|except|apart from|other than|although"
# A change is denied, not the finding.
UNCHANGED_ZH = "未见明显变化 未见变化 无明显变化 无变化 无明显改变 未见好转"
UNCHANGED_EN = "no change in|no significant change in|no increase in|no progression of|no further|not only|no new"
AND_ZH = "以及 及 和 与 或者 或 伴有 伴"
AND_EN = "and|or|with"
FILLER_ZH = "明显 明确 活动性 的 处 部 区 等 象限 为主 性 约 较 轻 重 大 小"
FILLER_EN = (
    "any|the|a|an|of|signs?|evidence|definite|obvious|significant|other|associated|in|at|quadrants?|area|region|as|well"
)


def words(english: str) -> str:
    """An alternation of English words that are not parts of other words."""
    return rf"(?<![a-z0-9])(?:{english})(?![a-z0-9])"


def any_of(chinese: str) -> str:
    """An alternation of Chinese words, in the order given."""
    return "|".join(chinese.split())


EXAMINED = "(?:exam(?:ination)? of (?:the )?)?"
EYES: Mapping[str, str] = {
    "both": "双眼底?|两眼底?|双侧眼底?|双侧|"
    + words(rf"{EXAMINED}both eyes|both fundi|both|bilateral|bilaterally|binocular|ou"),
    "right": "右眼底?|右侧眼底?|右侧|" + words(rf"{EXAMINED}right eye|right fundus|r eye|rt eye|od"),
    "left": "左眼底?|左侧眼底?|左侧|" + words(rf"{EXAMINED}left eye|left fundus|l eye|lt eye|os"),
}
# Too short to be taken for an eye but at the beginning of a statement, or alone in brackets.
SHORT_EYES: Mapping[str, str] = {
    "both": "双(?!侧|目|重(?!度))|" + words("be|ou"),
    "right": "右(?!侧)|" + words("re|r|rt|right"),
    "left": "左(?!侧|右)|" + words("le|l|lt|left"),
}
BEFORE, BEHIND = r"(?<![^\s,.:;。、(/>_|])", rf"(?=[\s:)\-,.;。?{TERM}{PLACE}]|[一-鿿]|$)"
_ANY_EYE = "|".join(f"(?:{EYES[eye]}|{SHORT_EYES[eye]})" for eye in EYES)
EYE = re.compile("|".join(EYES.values()))
SAME = rf"(?:{_ANY_EYE}) ?:? ?(?:情况)?(?:同|与|和)(?:(?:{_ANY_EYE})(?:相同|一致|相似|相仿)?|上|前)"
SAME_EN = (
    rf"(?:same findings )?(?:{_ANY_EYE}) (?:is )?(?:the )?(?:same )?as (?:the )?(?:{_ANY_EYE})|"
    rf"(?:{_ANY_EYE}) ?[:\-]? ?(?:ditto|the same|same)(?![a-z])"
)


def _group(name: str, patterns: Iterable[str]) -> str:
    return f"(?P<{name}>{'|'.join(patterns)})"


# In the order of preference where two begin at the same character.
TOKENS = re.compile(
    "|".join(
        (
            _group("same", (SAME, SAME_EN)),
            _group("unchanged", (any_of(UNCHANGED_ZH), words(UNCHANGED_EN))),
            _group("doubt", (any_of(DOUBT_ZH), words(DOUBT_EN), r"\(±\)|\(\?\)")),
            _group("absent", (words(ABSENT_EN), r"\(-\)|阴性|已除外")),
            _group("deny", (any_of(DENY_ZH), words(DENY_EN))),
            _group("but", (any_of(BUT_ZH), words(BUT_EN))),
            _group("present", (words(PRESENT_EN), r"\(\+\)|阳性")),
            _group("assert", (any_of(ASSERT_ZH), words(ASSERT_EN))),
            *(_group(eye, (pattern,)) for eye, pattern in EYES.items()),
            *(_group(f"short_{eye}", (f"{BEFORE}(?:{pattern}){BEHIND}",)) for eye, pattern in SHORT_EYES.items()),
            _group("stop", (STOP,)),
            _group("query", (r"\?",)),
            _group("list", ("、",)),
            _group("comma", (",",)),
            _group("and", (any_of(AND_ZH), words(AND_EN), r"[+&]|/(?!d\b)")),
            _group("open", (r"[(\[]",)),
            _group("close", (r"[)\]]",)),
        )
    )
)
FILLER_WORDS = re.compile(f"{any_of(FILLER_ZH)}|{words(FILLER_EN)}")
FILLER = re.compile(f"{FILLER_WORDS.pattern}|[^a-z一-鿿]")

"""Errors of typing, input methods and text recognition: making them, and tolerating them.

The first three letters of an English word stay, since they tell pre-, sub- and intraretinal apart; Chinese characters
of laterality, place, degree, denial, doubt and number are neither replaced nor written.
"""

import re
from collections.abc import Iterator

import numpy as np

from common.data.records import Language

KEPT = 3  # letters at the beginning of a word
SHORTEST = 6  # letters of a word that may have a slip

# Each Chinese character, behind it those that are taken for it: of the same sound, or of much the same look.
_CONFUSED = """
    膜模摸 渗参掺 斑班 脉麦唛 萎委 缩索 盘盆磐 裂列烈 孔空 脱托拖 瘤榴留 疣尤犹 黄皇簧 网往罔冈 糖唐塘 病并丙 变便
    血雪 管官菅 增曾憎 生升牲 积集迹 混浑 浊独触 玻波坡 璃离漓 静净靖 硬应 棉绵锦 绒戎 絮序 肿种钟 葡蒲匍 萄桃淘
    豹包貌 纹文汶 格隔恪 劈霹辟 牵迁 阻组沮 塞赛寨 神申伸 经径 纤千钎 激击徼 巩恐工 络洛骆 迂于淤 曲屈 扩括 张章
    囊襄 样洋祥 炎言焱 视规祝 光广 底抵 支枝技 枝支 状壮 型形 形型 点占店 片骗 块快决 沉沈 着看 沿沼 循遁 环坏还
    仓苍 苍仓 色涩 素索 反返 射谢 瘢斑搬 痕恨很 术木述 填镇 充冲 油由 硅桂 注住 抗坑 征证 症证征 综宗踪 合盒 障章
    体休 晶品 永水 水永 缺决 损员 板扳版 层尽 头投 杯怀 盂孟 缘绿 线钱 压庄 迹绩 叉又 铜桐 丝纱 弧孤 斜科 倾顷 漆膝
    漫蔓 弥迷 骨滑 细组 胞泡 樱婴 桃挑 霞瑕 漏露 荧莹 屏萍 皱绉 褶摺 星猩 串窜 珠株朱 恶噁 陷馅 窝涡 极级 眼跟 胀涨
    狭峡侠 窄榨 蛋旦 白自 胶交 质值 粘沾 连联 畸奇 炼练 瓣辨 痣志 焰陷 怒努 迫追 刺剌 富付 颜彦 扣口 扎札 治冶 疗辽
    的得地 得的 建健 议义意 复付夏 查察茶 检捡俭 验检 患惠 诊珍 断段 期其 随遂 访仿 门们 科料 医匿 师帅 散撒 瞳童
    界届 边遍 清请情 楚础 红洪 润闰 例列 周洲 围违 区曲 部布 象像 限线 像象 相像 照昭 拍柏 图涂 史使 配佩 规归 临林
    床庆 必毕 行形 意义 控空 制治 结节 节结 居局 透诱 间问 介价 厚原 密蜜 匀均 则测 整正 齐剂 平评 亮晾 暗黯 呈程 续继
    余佘 备各 良粮 佳住 糊湖 误悟 欠久 距矩 径经 约药 物勿 药要 栓拴 塌踏 皮被 隆窿 起启 嵴脊
"""
CONFUSED_CHARACTERS: dict[str, str] = {entry[0]: entry[1:] for entry in _CONFUSED.split()}

# A neighbour on the keyboard for each letter.
NEIGHBOUR_KEYS: dict[str, str] = dict(zip("abcdefghijklmnopqrstuvwxyz", "svxfrghjoklknmpowtdyibezux", strict=True))

# What text recognition makes of letters.
MISREAD_LETTERS: tuple[tuple[str, str], ...] = (
    *(("rn", "m"), ("m", "rn"), ("cl", "d"), ("d", "cl"), ("l", "1"), ("o", "0"), ("e", "c"), ("ri", "n")),
    *(("vv", "w"), ("ii", "u"), ("h", "b"), ("g", "q"), ("s", "5")),
)


def misspell(text: str, language: Language, rng: np.random.Generator) -> str:
    """The text with one slip, each position and each kind of slip equally likely; itself where none is possible."""
    indices = [*slip_indices(text, language)]
    if not indices:
        return text
    slips = [*slips_at(text, indices[int(rng.integers(len(indices)))], language)]
    return slips[int(rng.integers(len(slips)))]


def misspellings(text: str, language: Language) -> set[str]:
    """Every text that `misspell` makes of this one."""
    return {slip for index in slip_indices(text, language) for slip in slips_at(text, index, language)} - {text}


def slip_indices(text: str, language: Language) -> Iterator[int]:
    """Where a slip may be: Chinese characters that are confused, the later letters of longer English words."""
    if language == "zh":
        yield from (index for index, character in enumerate(text) if character in CONFUSED_CHARACTERS)
        return
    for word in re.finditer(rf"[a-zA-Z]{{{SHORTEST},}}", text):
        yield from range(word.start() + KEPT, word.end() - 1)


def slips_at(text: str, index: int, language: Language) -> Iterator[str]:
    """The texts with one slip at an index.

    Chinese: a confused character. English: two letters in the wrong order, the first left out, doubled or its neighbour
    hit, or what it is misread as.
    """
    if language == "zh":
        yield from (text[:index] + other + text[index + 1 :] for other in CONFUSED_CHARACTERS[text[index]])
        return
    pair = text[index : index + 2]
    misread = [wrong + pair[len(right) :] for right, wrong in MISREAD_LETTERS if pair.startswith(right)]
    for slip in (pair[::-1], pair[1], pair[0] + pair, NEIGHBOUR_KEYS[pair[0].lower()] + pair[1], *misread):
        yield text[:index] + slip + text[index + 2 :]

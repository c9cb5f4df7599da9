"""The words that free-text fundus reports use around the terms, in Chinese and English.

Every phrase here leaves no doubt about its standard meaning, alone: `wording.py` sees to the context.
"""

from dataclasses import dataclass

from common.data.records import Language
from retsta_jax.findings import Severity


@dataclass(frozen=True)
class Phrases:
    """Ways to say things in one language; "{}" stands for what is said.

    verb_present: says that something is there even after a denial. listed_*: for several terms at once.
    clear_images: remarks that contradict a finding about the image.
    site_before, site_after: "{site}" and "{name}"; en uses adjectives before and nouns after.
    """

    eyes: dict[str, tuple[str, ...]]
    eye_joints: tuple[str, ...]
    eye_suffix: tuple[str, ...]
    same_as: tuple[str, ...]
    verb_present: tuple[str, ...]
    absent: tuple[str, ...]
    suspected: tuple[str, ...]
    listed_absent: tuple[str, ...]
    listed_suspected: tuple[str, ...]
    conjunctions: dict[str, tuple[str, ...]]
    severities: dict[Severity, tuple[str, ...]]
    severity_forms: tuple[str, ...]
    site_adjectives: dict[str, tuple[str, ...]]
    site_nouns: dict[str, tuple[str, ...]]
    site_before: tuple[str, ...]
    site_after: tuple[str, ...]
    ratio: tuple[str, ...]
    clear_images: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    comma: str
    list_comma: str
    stop: str
    odd_commas: tuple[str, ...]
    odd_stops: tuple[str, ...]


_ZH_SITES: dict[str, tuple[str, ...]] = {
    "superotemporal": ("颞上", "颞上方", "颞上象限"),
    "inferotemporal": ("颞下", "颞下方", "颞下象限"),
    "superonasal": ("鼻上", "鼻上方", "鼻上象限"),
    "inferonasal": ("鼻下", "鼻下方", "鼻下象限"),
    "macula": ("黄斑区", "黄斑", "黄斑部"),
    "posterior_pole": ("后极部", "后极", "后极区"),
    "mid_periphery": ("中周部", "中周边部", "中周"),
}

PHRASES: dict[Language, Phrases] = {
    "zh": Phrases(
        eyes={
            "right": ("右眼", "右眼", "右", "OD", "右眼底", "R"),
            "left": ("左眼", "左眼", "左", "OS", "左眼底", "L"),
            "both": ("双眼", "双眼", "双", "OU", "双眼底", "两眼"),
        },
        eye_joints=("：", ":", " ", "：", "，"),
        eye_suffix=("{}（{}）", "{}({})"),
        same_as=("{other}同{eye}", "{other}情况同{eye}", "{other}与{eye}相同"),
        verb_present=("可见{}", "见{}", "示{}", "有{}", "存在{}"),
        absent=("未见{}", "未见明显{}", "无{}", "未发现{}", "没有{}", "{}(-)", "不伴{}"),
        suspected=("疑似{}", "考虑{}", "{}？", "{}?", "可能{}", "不除外{}", "可疑{}", "疑{}", "{}（待排）", "{}(?)"),
        listed_absent=("未见{}", "未见明显{}", "无{}", "未发现{}"),
        listed_suspected=("考虑{}", "疑似{}", "不除外{}"),
        conjunctions={"absent": ("、", "及", "和", "或"), "suspected": ("、", "及", "和", "伴")},
        severities={
            "mild": ("轻度", "轻", "轻微", "较轻的"),
            "moderate": ("中度", "中等", "中等程度"),
            "severe": ("重度", "重", "严重", "严重的"),
        },
        severity_forms=("{severity}{name}", "{severity}{name}", "{name}（{severity}）"),
        site_adjectives=_ZH_SITES,
        site_nouns=_ZH_SITES,
        site_before=("{site}{name}", "{site}处{name}", "{site} {name}"),
        site_after=("{name}（{site}）", "{name}，{site}为主"),
        ratio=(
            "{name}，C/D约{ratio}",
            "{name}C/D={ratio}",
            "{name}（C/D {ratio}）",
            "{name}，杯盘比{ratio}",
            "{name} CDR {ratio}",
        ),
        clear_images=("图像清晰", "拍摄质量可"),
        openings=(
            "免散瞳眼底彩照",
            "患者配合好",
            "常规体检",
            "散瞳后检查",
            "45度眼底照相",
            "糖尿病史10年",
            "高血压病史多年",
            "患者XXXX",
            "检查号XXXX",
            "眼底筛查",
        ),
        closings=(
            "建议定期复查",
            "请结合临床",
            "建议OCT检查",
            "建议眼科门诊就诊",
            "随诊",
            "必要时行FFA检查",
            "仅供参考",
            "3个月后复查",
            "注意控制血糖",
            "医师XXXX",
        ),
        comma="，",
        list_comma="、",
        stop="。",
        odd_commas=("", " ", "", ",", "，，", "、", ";", "。"),
        odd_stops=("；", "\n", " ", "。。", "，", ".", "。\n", "  ", "&nbsp;", " XXXX ", "<br>"),
    ),
    "en": Phrases(
        eyes={
            "right": ("Right eye", "OD", "OD", "RE", "R eye", "Right fundus", "rt eye"),
            "left": ("Left eye", "OS", "OS", "LE", "L eye", "Left fundus", "lt eye"),
            "both": ("Both eyes", "OU", "OU", "BE", "Both fundi", "Bilaterally"),
        },
        eye_joints=(": ", " - ", " ", ": ", ", "),
        eye_suffix=("{} {}", "{} ({})"),
        same_as=("{other} same as {eye}", "{other} as {eye}", "same findings {other} as {eye}"),
        verb_present=("there is {}", "{} noted", "{} seen", "{} present", "shows {}", "has {}"),
        absent=(
            "no {}",
            "no evidence of {}",
            "without {}",
            "{} absent",
            "negative for {}",
            "no sign of {}",
            "no obvious {}",
        ),
        suspected=(
            "possible {}",
            "?{}",
            "? {}",
            "suspicious for {}",
            "cannot exclude {}",
            "likely {}",
            "{}?",
            "probable {}",
            "query {}",
            "r/o {}",
            "{} (suspected)",
        ),
        listed_absent=("no {}", "no evidence of {}", "negative for {}", "no sign of {}"),
        listed_suspected=("possible {}", "suspicious for {}", "cannot exclude {}"),
        conjunctions={"absent": (" or ", " / ", " or any "), "suspected": (" and ", " with ", " + ")},
        severities={
            "mild": ("mild", "slight", "minor", "low-grade"),
            "moderate": ("moderate", "mod", "mod.", "medium"),
            "severe": ("severe", "marked", "advanced", "high-grade"),
        },
        severity_forms=("{severity} {name}", "{severity} {name}", "{name} ({severity})"),
        site_adjectives={
            "superotemporal": ("superotemporal", "supero-temporal", "ST", "upper temporal"),
            "inferotemporal": ("inferotemporal", "infero-temporal", "IT", "lower temporal"),
            "superonasal": ("superonasal", "supero-nasal", "SN", "upper nasal"),
            "inferonasal": ("inferonasal", "infero-nasal", "IN", "lower nasal"),
            "macula": ("macular", "central macular"),
            "posterior_pole": ("posterior pole", "posterior polar"),
            "mid_periphery": ("mid-peripheral", "midperipheral"),
        },
        site_nouns={
            "superotemporal": ("superotemporal quadrant", "upper temporal quadrant", "ST quadrant"),
            "inferotemporal": ("inferotemporal quadrant", "lower temporal quadrant", "IT quadrant"),
            "superonasal": ("superonasal quadrant", "upper nasal quadrant", "SN quadrant"),
            "inferonasal": ("inferonasal quadrant", "lower nasal quadrant", "IN quadrant"),
            "macula": ("macula", "macular area", "macular region"),
            "posterior_pole": ("posterior pole", "posterior pole area"),
            "mid_periphery": ("mid-periphery", "midperiphery", "mid periphery"),
        },
        site_before=("{site} {name}",),
        site_after=("{name} at the {site}", "{name} ({site})", "{name} in the {site}"),
        ratio=("{name}, C/D {ratio}", "{name} C/D={ratio}", "{name} (CDR {ratio})", "{name}, cup to disc {ratio}"),
        clear_images=("Good image quality", "Images clear"),
        openings=(
            "Non-mydriatic fundus photograph",
            "Routine screening",
            "Dilated exam",
            "45 degree photo",
            "Known diabetic for 10 years",
            "Hx of hypertension",
            "Patient XXXX",
            "Good cooperation",
            "Annual check",
        ),
        closings=(
            "Advise review in 6 months",
            "Clinical correlation recommended",
            "Suggest OCT",
            "Refer to eye clinic",
            "Follow up",
            "FFA if needed",
            "Routine recall",
            "Control blood sugar",
            "Reported by Dr XXXX",
            "Please review",
        ),
        comma=", ",
        list_comma=", ",
        stop=". ",
        odd_commas=(" ", "; ", " ,", ",, ", ",", " and ", " + ", ". "),
        odd_stops=("; ", "\n", ".. ", " / ", ", ", ".", ".\n", ".  ", ".&nbsp;", ". XXXX ", "<br>"),
    ),
}

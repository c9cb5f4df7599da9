"""The words that free-text fundus reports use around the terms, in Chinese and English.

Every phrase here has an unambiguous standard meaning on its own; `wording.py` takes care of the context. A writing
style (`styles.py`) uses a subset of them.
"""

from dataclasses import dataclass

from common.data.records import Language
from retsta_jax.corpus.findings import Severity


@dataclass(frozen=True)
class Phrases:
    """Ways to say things in one language; "{}" stands for what is said.

    eyes: the names at the same index of the three lists are used together.
    verb_present: says that something is there even after a denial. listed_*: for several terms at once.
    clear_images: remarks that contradict a finding about the image.
    site_before, site_after: "{site}" and "{name}"; en uses adjectives before and nouns after.
    figures: numbers that state no finding, from `remarks.figures`.
    mentions: names of anatomy, sites and degrees without a finding, by kind of term.
    numbers, bullets: what stands before the sentences of a report, and the findings of a section, in a list.
    odd_*: faults of typing and storage; odd_commas between two findings that are there.
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
    figures: tuple[str, ...]
    mentions: dict[str, tuple[str, ...]]
    commas: tuple[str, ...]
    list_comma: str
    stops: tuple[str, ...]
    numbers: tuple[str, ...]
    bullets: tuple[str, ...]
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
            "right": ("右眼", "右", "OD", "右眼底", "R", "右侧", "右侧眼底"),
            "left": ("左眼", "左", "OS", "左眼底", "L", "左侧", "左侧眼底"),
            "both": ("双眼", "双", "OU", "双眼底", "双", "两眼", "双侧眼底"),
        },
        eye_joints=("：", ":", " ", "，", ""),
        eye_suffix=("{}（{}）", "{}({})"),
        same_as=("{other}同{eye}", "{other}情况同{eye}", "{other}与{eye}相同", "{other}同上", "{other}同前"),
        verb_present=("可见{}", "见{}", "示{}", "有{}", "存在{}", "发现{}", "{}(+)"),
        absent=(
            "未见{}",
            "未见明显{}",
            "无{}",
            "未发现{}",
            "没有{}",
            "{}(-)",
            "不伴{}",
            "{}：无",
            "没看到{}",
            "{}（-）",
            "未及{}",
        ),
        suspected=(
            "疑似{}",
            "考虑{}",
            "{}？",
            "{}?",
            "可能{}",
            "不除外{}",
            "可疑{}",
            "疑{}",
            "{}（待排）",
            "{}(?)",
            "{}(±)",
            "可能有{}",
            "{}待查",
            "{}可能性大",
            "不能排除{}",
        ),
        listed_absent=("未见{}", "未见明显{}", "无{}", "未发现{}", "没有{}", "没看到{}", "未及{}"),
        listed_suspected=("考虑{}", "疑似{}", "不除外{}", "可能有{}", "不能排除{}"),
        conjunctions={"absent": ("、", "及", "和", "或"), "suspected": ("、", "及", "和", "伴")},
        severities={
            "mild": ("轻度", "轻", "轻微", "较轻的"),
            "moderate": ("中度", "中等", "中等程度"),
            "severe": ("重度", "重", "严重", "严重的"),
        },
        severity_forms=("{severity}{name}", "{name}（{severity}）"),
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
        clear_images=("图像清晰", "拍摄质量可", "照片清楚", "图像质量：优"),
        openings=(
            "免散瞳眼底彩照",
            "患者配合好",
            "常规体检",
            "散瞳后检查",
            "45度眼底照相",
            "患者XXXX",
            "检查号XXXX",
            "眼底筛查",
            "无既往图像对比",
            "急诊会诊",
            "床旁检查",
            "内分泌科会诊",
        ),
        closings=(
            "建议定期复查",
            "请结合临床",
            "建议OCT检查",
            "建议眼科门诊就诊",
            "随诊",
            "必要时行FFA检查",
            "仅供参考",
            "注意控制血糖",
            "医师XXXX",
            "已告知患者",
            "请上级医师审核",
        ),
        figures=(
            "视力：右{vision}，左{other_vision}",
            "视力{vision}",
            "眼压{pressure}mmHg",
            "眼压右{pressure}mmHg左{other_pressure}mmHg",
            "糖尿病史{years}年",
            "高血压病史{years}年",
            "{months}个月后复查",
            "建议每{months}个月复查一次",
            "年龄{age}岁",
            "拍摄{images}张",
            "血糖{sugar}mmol/L",
        ),
        mentions={
            "anatomy": ("拍摄范围包括{}", "检查部位：{}", "本次拍摄{}", "以{}为中心拍摄"),
            "location": ("另拍{}", "加拍部位：{}", "补拍{}"),
            "severity": ("分级选项：{}", "分级参照：{}"),
        },
        commas=("，", "；", " ", "，另", "，然后"),
        list_comma="、",
        stops=("。", "；", "\n", "。\n", " ", "，"),
        numbers=("{}. ", "{}、", "（{}）"),
        bullets=("- ", "{}. ", "（{}）", "", "● "),
        odd_commas=("", " ", ",", "，，", "、", ";", "。", "  "),
        odd_stops=("；", "\n", " ", "。。", "，", ".", "。\n", "  ", "&nbsp;", " XXXX ", "<br>", "_x000D_", "||"),
    ),
    "en": Phrases(
        eyes={
            "right": (
                "Right eye",
                "OD",
                "RE",
                "R eye",
                "Right fundus",
                "rt eye",
                "R",
                "Examination of the right eye",
                "RIGHT EYE",
                "the right eye",
                "right eye",
            ),
            "left": (
                "Left eye",
                "OS",
                "LE",
                "L eye",
                "Left fundus",
                "lt eye",
                "L",
                "Examination of the left eye",
                "LEFT EYE",
                "the left eye",
                "left eye",
            ),
            "both": (
                "Both eyes",
                "OU",
                "BE",
                "Both eyes",
                "Both fundi",
                "both eyes",
                "BE",
                "Examination of both eyes",
                "BOTH EYES",
                "both eyes",
                "bilaterally",
            ),
        },
        eye_joints=(": ", " - ", " ", ", ", " shows ", " reveals ", " demonstrates "),
        eye_suffix=("{} {}", "{} ({})", "{} in {}"),
        same_as=(
            "{other} same as {eye}",
            "{other} as {eye}",
            "same findings {other} as {eye}",
            "{other}: same",
            "{other} ditto",
        ),
        verb_present=(
            "there is {}",
            "{} noted",
            "{} seen",
            "{} present",
            "shows {}",
            "has {}",
            "{} is present",
            "{} is seen",
            "{} (+)",
        ),
        absent=(
            "no {}",
            "no evidence of {}",
            "without {}",
            "{} absent",
            "negative for {}",
            "no sign of {}",
            "no obvious {}",
            "{}: absent",
            "{}: none",
            "{} (-)",
            "nil {}",
            "free of {}",
            "{} not seen",
            "there is no {}",
            "does not show {}",
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
            "{} (?)",
            "{}: suspected",
            "{} cannot be excluded",
            "there may be {}",
            "presumed {}",
        ),
        listed_absent=(
            "no {}",
            "no evidence of {}",
            "negative for {}",
            "no sign of {}",
            "nil {}",
            "free of {}",
            "there is no {}",
            "does not show {}",
        ),
        listed_suspected=("possible {}", "suspicious for {}", "cannot exclude {}", "there may be {}"),
        conjunctions={"absent": (" or ", " / ", " or any ", " and "), "suspected": (" and ", " with ", " + ")},
        severities={
            "mild": ("mild", "slight", "minor", "low-grade"),
            "moderate": ("moderate", "mod", "mod.", "medium"),
            "severe": ("severe", "marked", "advanced", "high-grade"),
        },
        severity_forms=("{severity} {name}", "{name} ({severity})"),
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
        clear_images=("Good image quality", "Images clear", "Quality: good", "Photos adequate"),
        openings=(
            "Non-mydriatic fundus photograph",
            "Routine screening",
            "Dilated exam",
            "45 degree photo",
            "Patient XXXX",
            "Good cooperation",
            "Annual check",
            "No previous images for comparison",
            "Thank you for seeing this patient",
            "Seen in eye casualty",
            "Telephone report",
        ),
        closings=(
            "Clinical correlation recommended",
            "Suggest OCT",
            "Refer to eye clinic",
            "Follow up",
            "FFA if needed",
            "Routine recall",
            "Control blood sugar",
            "Reported by Dr XXXX",
            "Please review",
            "Discussed with patient",
            "Yours sincerely",
        ),
        figures=(
            "VA OD {vision} OS {other_vision}",
            "VA {vision}",
            "IOP {pressure} mmHg",
            "IOP {pressure}/{other_pressure}",
            "Known diabetic for {years} years",
            "Hypertension for {years} years",
            "Advise review in {months} months",
            "Recall {months}/12",
            "Age {age}",
            "{images} images taken",
            "HbA1c {sugar}%",
        ),
        mentions={
            "anatomy": ("Field includes the {}", "Structures imaged: {}", "Photograph centred on the {}", "Imaged: {}"),
            "location": ("Additional views: {}", "Extra fields: {}"),
            "severity": ("Grades on this form: {}", "Grading options: {}"),
        },
        commas=(", ", "; ", " and ", ". ", " then "),
        list_comma=", ",
        stops=(". ", "\n", "; ", ".\n", " ", ", "),
        numbers=("{}. ", "{}) ", "({}) "),
        bullets=("- ", "{}. ", "* ", "", "({}) "),
        odd_commas=(" ", "; ", " ,", ",, ", ",", " and ", " + ", ". "),
        odd_stops=(
            "; ",
            "\n",
            ".. ",
            " / ",
            ", ",
            ".",
            ".\n",
            ".  ",
            ".&nbsp;",
            ". XXXX ",
            "<br>",
            "_x000D_",
            " || ",
        ),
    ),
}

"""Tables 1 to 5 of the paper as it prints them: BLEU-1, BLEU-4, METEOR and ROUGE-L in percent, on its own reports."""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple

from common.data.records import Language

METRICS = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L")
RETSTA, RETSTA_ZERO = "RetSTA", "RetSTA-Zero"
FEW, NOT_AUGMENTED, AUGMENTED = "few, augmented", "not augmented", "augmented"
CHINESE, ENGLISH, BILINGUAL = "Chinese only", "English only", "bilingual"

Figures = tuple[float, float, float, float]


class PaperTable(NamedTuple):
    """A table of the paper: what it shows, the language of the reports, and its rows.

    `chain`: which rows the paper compares, each with the next; empty: RetSTA with each of the others.
    """

    title: str
    language: Language | Literal["given"]  # "given": that of the pairs to begin with
    rows: Mapping[str, Figures]
    chain: tuple[str, ...] = ()

    def figures(self, name: str) -> dict[str, float]:
        """The paper's figures of a row as fractions of 1; {} where it has none. A peer's name may be a longer one."""
        peers = (own for own in self.rows if own not in (RETSTA, RETSTA_ZERO) and _letters(own) in _letters(name))
        own = name if name in self.rows else next(peers, None)
        return {} if own is None else dict(zip(METRICS, (round(one / 100, 4) for one in self.rows[own]), strict=True))


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


TABLES: dict[int, PaperTable] = {
    1: PaperTable(
        "standardization of English reports",
        "en",
        {
            RETSTA: (92.69, 89.66, 86.04, 90.08),
            "UltraMedical-8B": (26.20, 22.01, 35.33, 25.09),
            "OpenBioLLM-8B": (61.82, 47.17, 52.01, 44.02),
            "Yi-1.5-9B-Chat": (70.47, 56.86, 59.29, 52.58),
            "GLM-4-9B": (76.40, 62.18, 59.76, 57.46),
            "Baichuan2-7B-Chat": (75.49, 59.79, 60.57, 52.55),
            "Llama-3.1-8B-Instruct": (53.01, 43.29, 53.27, 43.85),
            "Qwen2.5-7B-Instruct": (20.23, 16.10, 18.77, 16.03),
            "Qwen2.5-72B-Instruct": (80.32, 66.65, 66.69, 57.27),
            "GLM-4-Plus": (70.44, 54.53, 53.46, 52.52),
            "DeepSeek-V3": (84.39, 76.12, 73.69, 74.55),
        },
    ),
    2: PaperTable(
        "standardization of Chinese reports",
        "zh",
        {
            RETSTA: (93.35, 89.83, 94.19, 94.30),
            RETSTA_ZERO: (91.93, 87.89, 92.74, 92.77),
            "Yi-1.5-9B-Chat": (70.31, 56.45, 75.76, 71.37),
            "GLM-4-9B": (74.77, 60.23, 77.60, 75.17),
            "Llama-3.1-8B-Chinese-Chat": (79.02, 66.11, 80.21, 78.88),
            "Qwen2.5-7B-Instruct": (76.83, 65.09, 79.81, 77.99),
            "Baichuan2-7B-Chat": (73.46, 57.11, 73.94, 72.26),
            "Qwen2.5-72B-Instruct": (81.97, 72.39, 84.34, 83.21),
            "GLM-4-Plus": (83.00, 74.21, 85.68, 84.41),
            "DeepSeek-V3": (82.92, 74.75, 83.97, 84.35),
        },
    ),
    3: PaperTable(
        "augmentation",
        "given",
        {
            FEW: (87.11, 78.84, 87.56, 87.82),
            NOT_AUGMENTED: (87.49, 79.51, 88.08, 88.16),
            AUGMENTED: (91.93, 87.89, 92.74, 92.77),
        },
        chain=(AUGMENTED, NOT_AUGMENTED, FEW),
    ),
    4: PaperTable(
        "training on Chinese reports only, or on both languages",
        "zh",
        {CHINESE: (93.43, 89.84, 94.24, 94.29), BILINGUAL: (93.35, 89.83, 94.19, 94.30)},
        chain=(CHINESE, BILINGUAL),
    ),
    5: PaperTable(
        "training on English reports only, or on both languages",
        "en",
        {ENGLISH: (92.55, 89.56, 86.14, 90.12), BILINGUAL: (92.69, 89.66, 86.04, 90.08)},
        chain=(BILINGUAL, ENGLISH),
    ),
}

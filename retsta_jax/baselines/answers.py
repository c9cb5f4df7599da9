"""Answers of prompted models: extracting the standard report, and checking its language.

RetSTA remarks that Qwen2.5-7B-Instruct, prompted in English to answer in English, wrote much Chinese (section 3.2).
"""

import re
from collections.abc import Mapping, Sequence

from common.data.cleaning import clean_report
from common.data.records import Language, ReportPair
from common.metrics.tokenize import language_of
from common.report.page import Table

LABEL = re.compile(
    r"(?:\*\*|#+ *)?(?:(?:the )?standard(?:i[sz]ed)? report|codes|标准化?报告)(?:\*\*)? *[:：](?:\*\*)?", re.IGNORECASE
)
OPENING = re.compile(r"```[A-Za-z]*[ \t]*(?:\n|$)")
BLANK_LINE = re.compile(r"\n[ \t]*\n")
OTHER_SCRIPT: Mapping[Language, re.Pattern[str]] = {"en": re.compile("[㐀-鿿]"), "zh": re.compile("[A-Za-z]")}
MEASURES: Mapping[str, tuple[str, str]] = {
    "reports": ("reports", ",.0f"),
    "wrong_language": ("answers in the wrong language", ".1%"),
    "other_script": ("answers with a character of the other script", ".1%"),
    "other_script_references": ("standard reports with one", ".1%"),
    "no_text": ("answers without a letter", ".1%"),
}  # what each is, and its format


def answer_of(output: str, *, completion: bool = False) -> str:
    """The standard report in what a model wrote; all else that it wrote counts as part of it.

    Of a `completion` what stands before its first blank line. Then the label "Standard report:" at its beginning (or
    "Codes:", 标准报告：, also in bold or as a heading) and a fence of code (```) around it are taken away, as long as
    there are any, and white space is made that of training targets.
    """
    text = output.strip()
    if completion:
        text = BLANK_LINE.split(text, 1)[0]
    while True:
        before = text
        if label := LABEL.match(text):
            text = text[label.end() :].strip()
        if opening := OPENING.match(text):
            text = text[opening.end() :].strip().removesuffix("```").strip()
        if text == before:
            return clean_report(text)


def language_shares(answers: Sequence[str], pairs: Sequence[ReportPair]) -> dict[Language, dict[str, float]]:
    """For each language of the reports, by the names of MEASURES, shares of 0 to 1 of the answers.

    An answer is in the wrong language where `language_of` it is not that of its report: Chinese where a fifth of the
    letters or more are. One without a letter is in none. The other script of an English report is Chinese characters,
    that of a Chinese report Latin letters, which standard reports may have as well ("OCT").
    """
    shares = {}
    for language in sorted({pair.language for pair in pairs}):
        own = [(answer, pair) for answer, pair in zip(answers, pairs, strict=True) if pair.language == language]
        texts = [answer for answer, _ in own]
        lettered = [text for text in texts if any(map(str.isalpha, text))]
        script = OTHER_SCRIPT[language]
        shares[language] = {
            "reports": len(own),
            "wrong_language": sum(language_of(text) != language for text in lettered) / len(own),
            "other_script": sum(bool(script.search(text)) for text in texts) / len(own),
            "other_script_references": sum(bool(script.search(pair.target)) for _, pair in own) / len(own),
            "no_text": (len(own) - len(lettered)) / len(own),
        }
    return shares


def language_table(shares: Mapping[Language, Mapping[str, float]]) -> Table:
    """The shares as a table of the page, a column for each language."""
    rows = [(text, *(f"{own[name]:{form}}" for own in shares.values())) for name, (text, form) in MEASURES.items()]
    lead = "Wrong: Chinese (a fifth of the letters or more) for an English report, or English for a Chinese one."
    return Table("Language of the answers", lead, ("", *shares), rows)

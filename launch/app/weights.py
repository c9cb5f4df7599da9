"""The page that shows DiTPO's token weights of reports: by TF-IDF, and by their influence on the labeler."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from common.clinical.report_labeler import ReportLabeler
from common.errors import UserError
from common.metrics.clinical import POSITIVE
from deer_jax.analyse import sentences, tokens_of, with_tokens
from deer_jax.rewarding import score_function
from deer_jax.rewards import label_f1
from deer_jax.token_weights import STRENGTH, Group, weights_of
from deer_jax.weights import read_groups
from launch.app.forms import Form
from launch.app.models import Models

MOST_REPORTS = 16
MOST_TOKENS = 2_000  # of a report
LEVELS = 20  # of shade
METHODS = {
    "gradient": ("Saliency", "how strongly a token moves the labeler towards the positive findings of the reference"),
    "tfidf": ("TF-IDF", "how often a token stands in its report, times how few of the reports have it"),
}
EXAMPLES = (
    (
        "Four reports of one effusion",
        "Moderate left pleural effusion is identified. The aorta is mildly tortuous. No pneumothorax.",
        "There is a moderate left pleural effusion. The heart is normal in size.\n"
        "The heart is slightly enlarged. There is a small right pleural effusion.\n"
        "No pleural effusion. No evidence of pneumothorax. The lungs are clear.\n"
        "There is a moderate amount of left pleural fluid. No pneumothorax is seen.",
    ),
    (
        "Pneumonia, hedged or not",
        "Hazy opacity in the right lower lobe which may represent pneumonia. The heart is normal in size.",
        "There is evidence of a hazy opacity in the right lower lobe. Pneumonia cannot be excluded.\n"
        "The lungs are clear. The heart is normal in size.\n"
        "Right lower lobe pneumonia. No pleural effusion.",
    ),
    (
        "A pacemaker alone",
        "Left chest wall pacemaker with intact leads is in place. The lungs are clear.",
        "There is a left pectoral cardiac device with two leads. The heart is not enlarged.\n"
        "The heart is normal in size. No evidence of pleural fluid or pneumothorax.",
    ),
)


class Shown(NamedTuple):
    """A report with its sentences, their tokens shaded, by each method; the positive findings read in it, its F1."""

    methods: dict[str, list[dict[str, Any]]]
    findings: list[str]
    f1: float


def blank(models: Models) -> dict[str, Any]:
    """The page before reports are given."""
    return {
        "examples": [name for name, *_ in EXAMPLES],
        "methods": METHODS,
        "reference": "",
        "reports": "",
        "result": None,
        "most": MOST_REPORTS,
        "labeler": models.sources.labeler,
        "levels": LEVELS,
    }


def answer(models: Models, form: Form) -> dict[str, Any]:
    """The page with the token weights. Raises UserError for reports that have none."""
    number, reference, given = form.text("example"), form.text("reference").strip(), form.text("reports")
    if number.isdecimal() and int(number) < len(EXAMPLES):
        _, reference, given = EXAMPLES[int(number)]
    texts = [line.strip() for line in given.splitlines() if line.strip()]
    check(reference, texts)
    read, stop_ids = models.policy_reader
    labeler = models.labeler
    (group,) = read_groups([{"id": "study", "reference": reference, "rollouts": texts}], read, labeler)
    if max(len(rollout.tokens) for rollout in group.rollouts) > MOST_TOKENS:
        raise UserError(f"A report has more than {MOST_TOKENS:,} tokens; shorten it.")
    parts = sentences([reference, *texts], labeler)
    classes = labeler.label(texts, range(1, len(texts) + 1)).classes
    expected = np.broadcast_to(group.reference_classes, classes.shape)
    shown = [
        Shown({}, positive_findings(labeler, own), float(f1))
        for own, f1 in zip(classes, label_f1(classes, expected), strict=True)
    ]
    largest = {}
    for method in METHODS:
        largest[method] = shade(group, method, score_function(method, labeler, stop_ids), parts[1:], shown)
    return {
        **blank(models),
        "reference": reference,
        "reports": "\n".join(texts),
        "result": {
            "reference": reference,
            "findings": [
                labeler.labels[index] for index in np.flatnonzero(np.equal(group.reference_classes, POSITIVE))
            ],
            "reports": shown,
            "largest": largest,
            "strength": STRENGTH,
        },
    }


def positive_findings(labeler: ReportLabeler, classes: Sequence[int]) -> list[str]:
    """The names of the findings that are present."""
    return [labeler.labels[index] for index in np.flatnonzero(np.equal(classes, POSITIVE))]


def check(reference: str, texts: Sequence[str]) -> None:
    """Raise UserError where there is nothing to weigh."""
    if not reference:
        raise UserError("There is no reference yet: paste one, or choose an example.")
    if not texts:
        raise UserError("There is no report yet: paste one or more, each on a line of its own.")
    if len(texts) > MOST_REPORTS:
        raise UserError(f"These are {len(texts)} reports; at most {MOST_REPORTS}, each on a line of its own.")


def shade(group: Group, method: str, scores: Any, parts: Sequence[Any], shown: Sequence[Shown]) -> float:
    """Add the shaded tokens of each report by a method to `shown`; the largest weight."""
    (weights,) = weights_of(scores([group]), STRENGTH[method])
    most = max((float(own.max(initial=1)) for own in weights), default=1.0)
    for rollout, own, sentence, report in zip(group.rollouts, weights, parts, shown, strict=True):
        tokens = tokens_of(rollout, own, most)
        for token in tokens:
            token["level"] = round(LEVELS * min(max(token["red"], 0.0), 1.0))
        report.methods[method] = with_tokens(sentence, tokens)
    return most

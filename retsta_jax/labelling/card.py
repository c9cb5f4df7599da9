"""The data set card of labelled pairs: by which model and rules they were made, what was kept, and what not and why."""

from pathlib import Path
from typing import NamedTuple

from common.config import read_config
from common.data.card import DataCard, card_text
from common.data.identifiers import warn_of_identifiers
from common.data.records import Quarantine
from common.endpoint import Endpoint
from common.io.exports import CARD
from common.io.mirror import with_addresses
from common.io.outputs import write_whole
from common.io.text import read_json_object
from retsta_jax.config import RetstaConfig
from retsta_jax.labelling.filters import MOST_UNREAD, RULES, Judge
from retsta_jax.labelling.label import PAIRS, Funnel, LabelConfig, shard_file
from retsta_jax.pairs import read_pairs

FIELDS = {
    "id": "of the report",
    "source": "the report, with white space and marks of storage cleaned",
    "target": "its standard form, as the model wrote it",
    "language": "of both",
}
LIMITS = (
    "The standard reports are a model's, and no person has read them. A pair that keeps the rules can still be wrong: "
    "the rules compare what a terminology recognises in both texts, and do not see what it does not name. What this "
    "model does not standardize well is rejected more often, so some findings are rarer here than in the reports. A "
    "model that learns from these pairs repeats the errors of the one that wrote them: evaluate it on pairs that a "
    "person made."
)


class Labelled(NamedTuple):
    """What `label_reports` was given, and what it kept."""

    run_dir: Path
    source: str
    output: Path
    judge: Judge
    config: LabelConfig
    endpoint: Endpoint | None
    funnel: Funnel


def write_card(labelled: Labelled, command: str) -> None:
    """Write the card beside the pairs, and warn of identifiers in them. Raises UserError."""
    output, funnel = labelled.output, labelled.funnel
    pairs = read_pairs(output / PAIRS, Quarantine()) if funnel.kept else []
    texts = (f"{pair.source}\n{pair.target}" for pair in pairs)
    duplicates = {f"{kind} duplicate": count for kind, count in funnel.duplicates.items()}
    card = DataCard(
        title="Report pairs with pseudo-labels",
        source=f"{funnel.reports:,} reports of {labelled.source}",
        command=command,
        counts={PAIRS: funnel.kept},
        left_out={f"rule broken: {name}": count for name, count in funnel.rejected.items()} | duplicates,
        notes={},
        languages=sorted({pair.language for pair in pairs}),
        tasks=["text-generation"],
        identifiers=warn_of_identifiers(texts, "pairs that were written"),
        fields=FIELDS,
        made_with=model_and_rules(labelled),
        limits=LIMITS,
    )
    write_whole(output / CARD, card_text(card))


def model_and_rules(labelled: Labelled) -> dict[str, str]:
    """What decided the pairs: the model as the record of the first shard names it, and the rules with their limits."""
    run_dir, _, output, judge, config, endpoint, _ = labelled
    run = read_config(RetstaConfig, run_dir)
    base = Path(run.model.base).name or run.model.base
    model = f"run {run_dir}, on {base}"
    if endpoint is None:
        model += f" (digest of what was trained: `{trained_digest(output)}`)"
    else:
        model += f", by {endpoint.url} (model {endpoint.model})"
    applied = [name for name in judge.rules if name not in config.skip_rules]
    skipped = [name for name in judge.rules if name in config.skip_rules]
    near = config.duplicates
    told = {
        "model": with_addresses(model),
        "longest answer": f"{run.max_new_tokens} tokens; one that is cut off breaks a rule",
        "rules": ", ".join(applied) or "none",
        "rules not applied": ", ".join(skipped),
        "duplicates": f"of pairs that state the same, one of two stays whose sets of {near.ngram} characters have a "
        f"Jaccard index of at least {near.threshold:g}",
    }
    if judge.rules == tuple(RULES):
        told["outside the terminology"] = f"more than {MOST_UNREAD:.0%} of the letters of a standard report"
    return {name: text for name, text in told.items() if text}


def trained_digest(output: Path) -> str:
    """The digest of the weights that labelled, as the first shard's record has it."""
    record = shard_file(output, 0)
    return str(read_json_object(record.with_name(f"{record.name}.config.json"))["made_with"]["trained"])

"""The command line of `retsta label`."""

from pathlib import Path

from common.config import parse
from common.errors import Parser, UserError
from common.metrics.tokenize import language_of
from common.options import command_line
from common.report.environment import environment
from common.report.page import REPORT_FILE, Example, Page, Stage, write_report
from retsta_jax.filters import RULES
from retsta_jax.label import PAIRS, Funnel, LabelConfig, label_reports
from retsta_jax.terminology import SHIPPED, load_terminology

HELP = f"""retsta label REPORTS --run-dir DIR --output DIR [--terminology FILE] [any field below]

Label free-text reports with a trained model, and keep the pairs that pass the rules and are not duplicates.
REPORTS: JSONL rows {{"id", "report"}}, or text with one report a line. Writes into --output: shards/, pairs.jsonl
(rows {{"id", "source", "target", "language"}}), rejected.jsonl (with the reasons), funnel.json, report.html.
Rules: {", ".join(RULES)}.
"""


def label(arguments: list[str]) -> None:
    """Run the command. Raises UserError."""
    options = Parser("retsta label", add_help=False)
    options.add_argument("source", nargs="?")
    options.add_argument("--run-dir", type=Path)
    options.add_argument("--output", type=Path)
    options.add_argument("--terminology", type=Path, default=SHIPPED)
    chosen, rest = options.parse_known_args(arguments)
    if {"-h", "--help"} & set(arguments):
        print(HELP)
        rest = ["--help"]
    config = parse(LabelConfig, LabelConfig(), rest, "retsta label")
    for name, value in (("REPORTS", chosen.source), ("--run-dir", chosen.run_dir), ("--output", chosen.output)):
        if value is None:
            raise UserError(f"retsta label: {name} is missing; see retsta label --help")
    if unknown := [name for name in config.skip_rules if name not in RULES]:
        raise UserError(f"retsta label: --skip-rules {unknown[0]}: unknown; rules are {', '.join(RULES)}")
    funnel = label_reports(chosen.run_dir, chosen.source, chosen.output, load_terminology(chosen.terminology), config)
    if funnel is None:
        return
    print(funnel_text(funnel))
    command = {"run_dir": chosen.run_dir, "output": chosen.output}
    page = Page(
        title="RetSTA: pseudo-labels",
        verdict=f"{funnel.kept:,} of {funnel.reports:,} labelled reports are kept as pairs.",
        command=command_line(f"retsta label {chosen.source}", command),
        environment=environment(),
        funnel=stages_of(funnel),
        examples=examples_of(funnel),
        notes=[plain_text_note(funnel)],
    )
    write_report(chosen.output, page)
    print(f"pairs: {chosen.output / PAIRS}\npage: {(chosen.output / REPORT_FILE).absolute()}", flush=True)


def stages_of(funnel: Funnel) -> list[Stage]:
    """The steps from reports to pairs."""
    passed = funnel.reports - sum(funnel.rejected.values())
    return [
        Stage("labelled", funnel.reports, {}),
        Stage("kept all rules", passed, funnel.rejected),
        Stage("no duplicate", funnel.kept, {f"{kind} duplicate": n for kind, n in funnel.duplicates.items()}),
    ]


def examples_of(funnel: Funnel) -> list[Example]:
    """The examples for a page: the reason in place of an id."""
    return [
        Example(one["reason"], one["source"], None, {"standard report": one["standard"]}, language_of(one["source"]))
        for one in funnel.examples
    ]


def plain_text_note(funnel: Funnel) -> str:
    """What similarity of text alone would have done."""
    return (
        f"Similarity of text alone would have removed {funnel.plain_text['removed']} pairs; "
        f"{funnel.plain_text['different']} of them state something else than the pair that would have stayed."
    )


def funnel_text(funnel: Funnel) -> str:
    """The funnel as lines."""
    lines = [f"{funnel.kept} of {funnel.reports} reports are kept as pairs"]
    lines += [f"  rejected, {name}: {count}" for name, count in funnel.rejected.items()]
    lines += [f"  {kind} duplicates: {count}" for kind, count in funnel.duplicates.items()]
    return "\n".join([*lines, plain_text_note(funnel)])

"""The command line of `retsta paradigm`, its presets, and its page."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config_options import preset_parser, read_preset_options
from common.endpoint import add_endpoint_options, endpoint_settings
from common.errors import UserError
from common.io.numbers import score_text
from common.io.outputs import check_own_object, check_own_page
from common.io.tables import score_lines
from common.io.terminal import say
from common.options import Needs, training_command, used_settings
from common.process.first import is_first_process
from common.report.compare_command import compare_files
from common.report.comparison import COLUMNS, summary, table_rows
from common.report.comparison import Result as Compared
from common.report.environment import environment
from common.report.page import REPORT_FILE, Page, Stage, Table, save_run_page
from retsta_jax.config import PRESETS as TRAINING
from retsta_jax.evaluate import CONSTANT, MODEL, NEAREST, headline
from retsta_jax.labelling.card import write_card
from retsta_jax.labelling.command import examples_of, plain_text_note
from retsta_jax.labelling.label import LabelConfig
from retsta_jax.paradigm.paradigm import (
    FINAL,
    SPLITS,
    ZERO,
    ParadigmConfig,
    ParadigmData,
    Result,
    Translation,
    check_given,
    run_paradigm,
)
from retsta_jax.translation.command import made_with, translator_of
from retsta_jax.translation.endpoint_translator import MAX_TOKENS

DIFFERENCES = "differences.json"  # of a run directory; and .html
MODELS = {"RetSTA": FINAL, "RetSTA-Zero": ZERO}  # by name, their run directories
# Above each preset: its command, the hardware it was made for, and what it should reach (docs/results.md).
PRESETS: dict[str, ParadigmConfig] = {
    # retsta paradigm --preset demo --run-dir runs/paradigm
    # 2 CPU cores, 5 minutes. Findings F1 of RetSTA 0.58 in Chinese, 0.42 in English; of RetSTA-Zero 0.55, 0.15.
    "demo": ParadigmConfig(
        data=ParadigmData(held_out="states", train_size=1500, validation_size=60, test_size=200, reports_size=4000),
        augment_to=6000,
        label=LabelConfig(batch_size=64),
        train=dataclasses.replace(TRAINING["small"], evaluate_every=200, checkpoint_every=200),
    ),
    # retsta paradigm --preset openi --data.archive NLMCXR_reports.tgz --data.test-ids openi-testset.txt --run-dir DIR
    # 2 CPU cores, hours. Nearest labelled report, 200 of them: codes F1 0.25, heads F1 0.39.
    "openi": ParadigmConfig(
        data=ParadigmData(corpus="openi", train_size=200),
        augment_to=0,
        label=LabelConfig(batch_size=64),
        translate="none",
        zero_epochs=40,
        final_epochs=8,
        train=dataclasses.replace(TRAINING["openi"], evaluate_every=20, checkpoint_every=20),
    ),
    # retsta paradigm --preset retsta-7b --train.model.base Qwen2.5-7B-Instruct --run-dir runs/paradigm
    # Eight devices of 16 GB or more; not run yet. The paper (Tables 1, 2): BLEU-4 89.83 in Chinese, 89.66 in English.
    "retsta-7b": ParadigmConfig(train=TRAINING["retsta-7b"]),
}
NEEDS = (
    *(Needs(f"data.{name}", "data.corpus", ("jsonl",)) for name in (*SPLITS, "reports", "targets")),
    *(
        Needs(f"data.{name}", "data.corpus", ("fundus",))
        for name in ("language", "held_out", "test_size", "reports_size")
    ),
    *(Needs(f"data.{name}", "data.corpus", ("fundus", "openi")) for name in ("train_size", "validation_size")),
    *(Needs(f"data.{name}", "data.corpus", ("openi",)) for name in ("archive", "test_ids")),
    *(Needs(name, "data.corpus", ("fundus", "jsonl")) for name in ("terminology", "translate")),
    Needs("augment", "augment_to", lambda pairs: pairs > 0, "--augment-to PAIRS"),
    Needs("train.data", give="the paradigm makes its own files; give --data.train and the others"),
    Needs("train.augment", give="give --augment"),
    Needs("train.epochs", give="give --zero-epochs and --final-epochs"),
    Needs("train.seed", give="give --seed"),
)
HELP = """From a terminology and a few report pairs to two evaluated models.
Your own: --data.corpus jsonl --data.train F --data.validation F --data.test F --data.reports F --terminology TABLE
Lists of codes as targets: --data.targets codes --translate none in place of a terminology, which is that of the pairs.
Open-i, of which --data.train-size reports keep their codes: --preset openi --data.archive NLMCXR_reports.tgz
--data.test-ids openi-testset.txt
Translation by a model behind an endpoint: --translate endpoint --endpoint URL --endpoint-model NAME
--send-reports-to-endpoint
The preset retsta-7b has the paper's sizes, and needs --train.model.base DIR, such as that of Qwen2.5-7B-Instruct.
"""


def paradigm(arguments: list[str]) -> None:
    """Run the command. Raises UserError."""
    options = preset_parser("retsta paradigm", PRESETS, HELP)
    add_endpoint_options(options)
    config, chosen = read_preset_options(options, PRESETS, arguments, NEEDS, check_given)
    run_dir: Path = chosen.run_dir
    endpoint = endpoint_settings(chosen, run_dir / "answers.sqlite", MAX_TOKENS)
    if (endpoint is None) == (config.translate == "endpoint"):
        raise UserError("retsta paradigm: --translate endpoint and --endpoint URL go together; give both or neither")
    translator = None if config.translate == "none" or config.data.corpus == "openi" else translator_of(endpoint)
    check_own_object(run_dir / DIFFERENCES, ["differences", "systems"])
    check_own_page((run_dir / DIFFERENCES).with_suffix(".html"))
    result = run_paradigm(config, run_dir, Translation(translator, made_with(endpoint)))
    if not is_first_process():
        return
    names = shown_metrics(result)
    print(score_lines(systems_of(result), names, intervals=names[0] == "codes/F1"))
    compared = compare_files({name: run_dir / model / "predictions.jsonl" for name, model in MODELS.items()})
    compared.save(run_dir / DIFFERENCES, (run_dir / DIFFERENCES).with_suffix(".html"))
    write_card(result.labelled, training_command("retsta paradigm", PRESETS, config, run_dir, NEEDS))
    save_run_page(run_dir, page_of(result, compared, config, run_dir))
    say(f"models: {run_dir / ZERO}, {run_dir / FINAL}\npage: {(run_dir / REPORT_FILE).absolute()}")


def systems_of(result: Result) -> dict[str, Mapping[str, Any]]:
    """The scores to show side by side, by the name of the system."""
    zero, final = result.scores[ZERO], result.scores[FINAL]
    models = {name: result.scores[model][MODEL] for name, model in MODELS.items()}
    if "codes/F1" in final[MODEL]:  # the labelled reports alone have codes that a person gave
        return {
            **models,
            "nearest labelled report": zero[NEAREST],
            CONSTANT: zero[CONSTANT],
        }
    return {**models, NEAREST: final[NEAREST], CONSTANT: final[CONSTANT]}


def shown_metrics(result: Result) -> list[str]:
    """The metrics of the paper, and F1 over findings, as far as they were computed; of codes, F1 over these."""
    scores = result.scores[FINAL][MODEL]
    if "codes/F1" in scores:
        return ["codes/F1", "heads/F1"]
    wanted = ("findings/F1", "coco/BLEU-1", "coco/BLEU-4", "METEOR", "coco/ROUGE-L")
    found = [name for name in scores if name.endswith(wanted) and scores[name].get("value") is not None]
    return found or headline(scores)


def stages_of(result: Result, config: ParadigmConfig) -> list[Stage]:
    """The funnel from pairs and reports to the pairs that the second model learns from."""
    start, funnel, counts = result.start, result.labelled.funnel, result.translated
    passed = funnel.reports - sum(funnel.rejected.values())
    known = "codes of the pairs given" if config.data.has_codes else "terms, with eye, certainty, degree and place"
    stages = [
        Stage("terminology", result.terms, {}, known),
        Stage("pairs given", len(start.train), {}),
        Stage("after augmentation", max(config.augment_to, len(start.train)), {}, "RetSTA-Zero learns from these"),
        Stage("reports labelled by RetSTA-Zero", funnel.reports, {}),
        Stage("kept all rules", passed, funnel.rejected),
        Stage("no duplicate", funnel.kept, {f"{kind} duplicate": count for kind, count in funnel.duplicates.items()}),
        Stage("not in the evaluation splits", result.apart, {"text of validation or test": funnel.kept - result.apart}),
    ]
    if counts is not None:
        stages.append(Stage("translated", counts.translated, counts.failed))
    return [*stages, Stage("pairs in all", result.mixed, {}, "RetSTA learns from these")]


def differences_table(compared: Compared) -> Table:
    """How the two models differ on the test reports, as `medreport compare` tells of their predictions."""
    lead = f"{summary(compared.differences)}, as medreport compare tells of {FINAL}/predictions.jsonl and of {ZERO}/."
    return Table("Which differences hold", lead, COLUMNS, table_rows(compared.differences))


def page_of(result: Result, compared: Compared, config: ParadigmConfig, run_dir: Path) -> Page:
    """The page of the whole paradigm."""
    notes = [plain_text_note(result.labelled.funnel)]
    notes += [
        f"The rule “{name}” was not applied: it rejects {share:.0%} of the pairs given, which are right."
        for name, share in result.skipped.items()
    ]
    if not config.augment_to:
        notes.append("RetSTA-Zero is trained on the pairs given alone, without augmentation.")
    notes.append(f"Both models have pages of their own, with curves: {ZERO}/report.html and {FINAL}/report.html.")
    systems, metrics = systems_of(result), shown_metrics(result)
    first = metrics[0]
    verdict = ", ".join(f"{score_text(scores[first]['value'])} for {name}" for name, scores in systems.items())
    return Page(
        title="RetSTA: from a terminology and a few pairs to two models",
        verdict=f"{first}: {verdict}.",
        command=training_command("retsta paradigm", PRESETS, config, run_dir, NEEDS),
        config=used_settings(config, NEEDS),
        environment=environment(),
        funnel=stages_of(result, config),
        systems=systems,
        headline=metrics,
        tables=[differences_table(compared)],
        examples=examples_of(result.labelled.funnel),
        notes=notes,
    )

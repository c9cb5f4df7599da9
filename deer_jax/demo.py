"""`deer demo`: the last two stages of DEER on drawn radiographs, from the small shipped model to a page, in minutes.

The shipped model already writes reports, as after the supervised stage. It samples ten reports of each training study,
DDSampling keeps the fifth of the studies on which these differ, and DiTPO with gradient weights learns from them. Held
out studies are reported before and after.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.clinical.labeler import Labeler, load_labeler
from common.clinical.report_labeler import label_lists
from common.clinical.scores import Scores, default_labeler, score_systems
from common.config import check_own_names, remove_run
from common.data.records import Quarantine
from common.data.splits import Split
from common.data.summary import say_data
from common.errors import Parser
from common.io.jsonl import write_rows
from common.io.locks import owning
from common.io.numbers import rounded, score_text
from common.io.outputs import check_output, write_whole
from common.io.safetensors import write_json
from common.io.tables import score_lines
from common.io.terminal import say
from common.metrics.text import warn_of_absent
from common.options import command_line, training_command, used_settings
from common.phantoms.source import draw_again
from common.report.environment import environment
from common.report.findings import Marks, mark_labels, tally
from common.report.page import REPORT_FILE, Example, Page, save_run_page
from common.training.logs import METRICS_FILE, read_metrics
from common.training.parallel import make_device_layout
from deer_jax.analyse import token_page
from deer_jax.config import RL_NEEDS, RL_PRESETS, SAMPLE_PRESETS, RlConfig
from deer_jax.prompts import read_splits, splits_line
from deer_jax.rl_run import CURVES, OUTPUTS, train_run
from deer_jax.sample import sample_run
from deer_jax.select import choose, read_studies
from deer_jax.setup import base_directory, load_base
from deer_jax.test_evaluation import NEAREST, baselines, held_out_reports, sampling, score_model
from deer_jax.weights import read_groups, read_rollout_rows, rollout_reader

AFTER, BEFORE = "after RL", "before RL"
TRAIN_SIZE, TEST_SIZE = 240, 200  # studies; ten reports are sampled of each of the first
FRACTION = 0.2  # of the training studies, chosen by DDSampling
SHOWN, SHOWN_SIDE = 12, 256  # examples on the page, and pixels of their images
HEADLINE = ["sampled/promptmrg/F1", "promptmrg/F1", "findings/F1"]
TOKEN_PAGE = "token_weights.html"
DEMO_NAMES = frozenset(
    ["before", "rollouts.jsonl", "chosen.json", "rl", "after", "metrics.json", TOKEN_PAGE, REPORT_FILE]
)


def main(arguments: list[str]) -> None:
    """The command line."""
    parser = Parser("deer demo", description=__doc__)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/deer-demo"))
    parser.add_argument("--fresh", action="store_true", help="start again even if the run exists")
    chosen = parser.parse_args(arguments)
    if chosen.fresh:
        remove_run(chosen.run_dir, RlConfig, OUTPUTS, inside="rl", beside=DEMO_NAMES)
    preset = RL_PRESETS["demo"]
    data = dataclasses.replace(preset.data, train_size=TRAIN_SIZE, test_size=TEST_SIZE)
    demo(dataclasses.replace(preset, data=data), chosen.run_dir)


@owning("run_dir")
def demo(config: RlConfig, run_dir: Path) -> dict[str, Scores]:
    """Sample, choose, learn, evaluate; writes report.html and token_weights.html. Returns the scores by system."""
    check_own_names(run_dir, DEMO_NAMES)
    read_metrics(run_dir / "rl" / METRICS_FILE)  # of a demo that goes on; damage is told before the work
    for name in ("chosen.json", "metrics.json", TOKEN_PAGE, REPORT_FILE):
        check_output(run_dir / name)
    print("DEER demo: reinforcement learning of reports for drawn radiographs, with token-level credit", flush=True)
    quarantine = Quarantine()
    splits = read_splits(config.data, quarantine)
    data_read = say_data(splits_line(config.data, splits, quarantine))
    base = base_directory(config.model)
    labeler = load_labeler(config.reward.labeler)
    before = held_out_reports(config, base, run_dir / "before")
    samples = run_dir / "rollouts.jsonl"
    rollout = SAMPLE_PRESETS["demo"].rollout
    print(f"sampling {rollout.group} reports of each of {len(splits['train'].studies)} studies", flush=True)
    sample_run(sampling(config, base, rollout, labeler=config.reward.labeler), samples)
    selection = choose(read_studies(samples), FRACTION, config.seed)
    write_rows(run_dir / "chosen.json", [selection])
    print(f"learning from the {len(selection['ids'])} on which they differ most", flush=True)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, ids=str(run_dir / "chosen.json")))
    train_run(config, run_dir / "rl")
    written = {AFTER: held_out_reports(config, run_dir / "rl" / "model", run_dir / "after"), BEFORE: before}
    layout = make_device_layout(config.parallel, config.mesh)
    loaded = load_base(config.model, config.data.side, config.instruction, layout)
    others = baselines(loaded, splits["train"], splits["test"], config.data.views, layout)
    test, scoring = splits["test"], default_labeler(config.data.layout) or labeler
    systems = {name: score_model(reports, test, scoring) for name, reports in written.items()}
    systems |= score_systems(others, test.studies, scoring)
    texts = {name: reports.greedy for name, reports in written.items()} | others
    absent = warn_of_absent(systems)
    write_json(run_dir / "metrics.json", rounded({"systems": systems, "notes": absent}))
    write_token_page(samples, selection["ids"], base, labeler, run_dir / TOKEN_PAGE)
    classes, _ = label_lists(scoring, [[study.report for study in test.studies], *texts.values()])
    marks = {name: mark_labels(classes[0], own, scoring.labels) for name, own in zip(texts, classes[1:], strict=True)}
    shown = page(config, run_dir, test, texts, systems, selection, marks)
    save_run_page(run_dir, dataclasses.replace(shown, notes=[data_read, *shown.notes, *absent]))
    print(score_lines(systems, HEADLINE))
    say(f"token weights: {(run_dir / TOKEN_PAGE).absolute()}")
    say(f"page: {(run_dir / REPORT_FILE).absolute()}")
    return systems


def write_token_page(samples: Path, ids: Sequence[str], tokenizer: Path, labeler: Labeler, file: Path) -> None:
    """The page of gradient weights of some chosen studies."""
    wanted = set(ids[:SHOWN])
    rows = [row for row in read_rollout_rows(samples) if row["id"] in wanted]
    rows = [{**row, "rollouts": row["rollouts"][:3]} for row in rows]
    read, stop_ids = rollout_reader(tokenizer)
    groups = read_groups(rows, read, labeler)
    html = token_page(groups, [row["id"] for row in rows], labeler, stop_ids, "gradient")
    write_whole(file, html + "\n")


def page(
    config: RlConfig,
    run_dir: Path,
    test: Split,
    texts: Mapping[str, Sequence[str]],
    systems: dict[str, Scores],
    selection: dict,
    marks: Mapping[str, Sequence[Marks]],
) -> Page:
    """The run page; `marks` are those of the findings of each system's reports."""

    def shown(name: str) -> str:
        found = {who: scores[name]["value"] for who, scores in systems.items() if name in scores}
        return ", ".join(f"{score_text(value)} {who}" for who, value in found.items())

    count = len(test.studies)
    indices = range(0, count, count // SHOWN | 1)[:SHOWN]
    drawn = [
        draw_again(config.data.phantom_seed, "test", index, SHOWN_SIDE, config.data.phantom_scanner).frontal
        for index in indices
    ]
    found = selection["statistics"]["labels"]
    vectors = {name: found[name]["unique_vectors"] for name in ("all", "selected")}
    return Page(
        title="DEER: phantom radiographs",
        verdict=f"Label F1 of a report drawn by chance, the reward's: {shown('sampled/promptmrg/F1')}. F1 over the "
        f"findings of the likeliest report: {shown('findings/F1')}.",
        command="\n".join(
            [
                command_line("deer demo", {"run_dir": run_dir}),
                training_command("deer rl", RL_PRESETS, config, run_dir / "rl", RL_NEEDS),
            ]
        ),
        config=used_settings(config, RL_NEEDS),
        environment=environment(),
        rows=read_metrics(run_dir / "rl" / METRICS_FILE),
        curves=CURVES,
        systems=systems,
        headline=HEADLINE,
        examples=[
            Example(
                test.studies[index].id,
                "",
                test.studies[index].report,
                {system: texts[system][index] for system in (AFTER, BEFORE, NEAREST)},
                images=(image,),
                findings={system: found[index] for system, found in marks.items()},
            )
            for index, image in zip(indices, drawn, strict=True)
        ],
        notes=[
            f"{count} held-out studies. DDSampling chose {len(selection['ids'])} for training, whose ten reports have "
            f"{vectors['selected']:.2f} different sets of labels; those of all studies have {vectors['all']:.2f}.",
            f"Which words the policy gradient presses, and which it leaves: {TOKEN_PAGE}, beside this page.",
            "The images are drawn, not taken: no number on this page says how a model does on patients.",
        ],
        findings=tally(marks[AFTER]),
    )

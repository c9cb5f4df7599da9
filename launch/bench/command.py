"""`medreport bench WORK [--peer]`: measures the speed of this device, as JSON.

Without `--peer` nothing beyond jax, flax, optax, jaxtyping and numpy is imported (by `rl` also Orbax, safetensors and
tokenizers, by `slots` and `speculation` tokenizers), so it runs on a bare image. With `--peer` the same work is done by
PyTorch in a child process, in turns with ours, and the ratios of the medians are printed. Weights are random where the
speed does not depend on them. `sft` and `decode` are in `launch.bench.decoder`, the others in the module of their name
in `launch.bench`: `slots` and `speculation` write reports like those of `--reports`, `rl` includes `labeler`, and
`speculation`, `standardize` and `duplicates` have no peer. Run `device` on a new accelerator: it measures parity and
speed of every model, with random weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import jax

from common.bounds import NOT_NEGATIVE, bounded
from common.errors import Parser
from common.io.text import json_text
from launch.bench import decoder as bench_decoder
from launch.bench import device as bench_device
from launch.bench import duplicates as bench_duplicates
from launch.bench import labeler as bench_labeler
from launch.bench import rl as bench_rl
from launch.bench import rl_policy
from launch.bench import slots as bench_slots
from launch.bench import speculation as bench_speculation
from launch.bench import standardize as bench_standardize
from launch.bench import unicross as bench_unicross
from launch.bench.report_model import Shape as ReportShape
from launch.bench.timing import add_flags
from launch.malloc import run_in_first_thread

WORKS = ("sft", "decode", "slots", "speculation", "unicross", "rl", "labeler", "standardize", "duplicates", "device")


def main(arguments: Sequence[str]) -> int:
    """Measure and print one JSON object. Raises UserError where the peer cannot run."""
    run_in_first_thread()
    on_cpu = jax.default_backend() == "cpu"
    parser = Parser("medreport bench", description=__doc__)
    named = cast(Any, lambda prog, **options: Parser(prog, **options))  # argparse gives the name by keyword
    works = parser.add_subparsers(dest="work", required=True, metavar="|".join(WORKS), parser_class=named)
    for work in ("sft", "decode"):
        add_flags(works.add_parser(work), bench_decoder.CPU if on_cpu else bench_decoder.Shape())
    add_flags(works.add_parser("unicross"), bench_unicross.CPU if on_cpu else bench_unicross.Shape())
    rl = works.add_parser("rl")
    add_flags(rl, rl_policy.CPU if on_cpu else rl_policy.Shape())
    rl.add_argument("--trl", action="store_true", help="with the peer, one step of TRL's trainer too, which is slow")
    add_flags(works.add_parser("labeler"), rl_policy.LABELER_CPU if on_cpu else rl_policy.LabelerShape())
    add_flags(works.add_parser("duplicates"), bench_duplicates.Shape(), with_peer=False)
    add_flags(of_run := works.add_parser("standardize"), bench_standardize.Shape(), with_peer=False)
    of_run.add_argument(
        "--run",
        type=Path,
        required=True,
        metavar="DIR",
        help="directory of a run of `retsta train`, such as that of the demo",
    )
    for work in ("slots", "speculation"):
        add_flags(of_work := works.add_parser(work), ReportShape(), with_peer=work == "slots")
        of_work.add_argument("--reports", type=Path, required=True, metavar="FILE", help="NLMCXR_reports.tgz of Open-i")
        of_work.add_argument(
            "--directory", type=Path, required=True, metavar="DIR", help="of the model: made, or used again"
        )
    of_device = works.add_parser("device")
    of_device.add_argument(
        "--size", choices=("published", "toy"), default="toy" if on_cpu else "published",
        help="sizes of the models (default: published; on a CPU: toy)",
    )  # fmt: skip
    of_device.add_argument(
        "--seconds",
        type=bounded(NOT_NEGATIVE, float),
        default=540.0,
        help="no part begins after this time; default: %(default)s",
    )
    of_device.add_argument("--output", type=Path, metavar="FILE", help="also write the JSON to FILE, after each part")
    options = vars(parser.parse_args(list(arguments)))
    work, with_peer = options.pop("work"), options.pop("peer", False)
    if work == "unicross":
        result = bench_unicross.measure(bench_unicross.Shape(**options), with_peer)
    elif work == "rl":
        with_trl = options.pop("trl")
        result = bench_rl.measure(rl_policy.Shape(**options), with_peer, with_trl)
    elif work == "labeler":
        result = bench_labeler.measure(rl_policy.LabelerShape(**options), with_peer)
    elif work in ("slots", "speculation"):
        files = options.pop("reports"), options.pop("directory")
        if work == "slots":
            result = bench_slots.measure(ReportShape(**options), *files, with_peer)
        else:
            result = bench_speculation.measure(ReportShape(**options), *files)
    elif work == "standardize":
        run = options.pop("run")
        result = bench_standardize.measure(bench_standardize.Shape(**options), run)
    elif work == "device":
        result = bench_device.measure(**options)
    elif work == "duplicates":
        result = bench_duplicates.measure(bench_duplicates.Shape(**options))
    else:
        result = bench_decoder.measure(work, bench_decoder.Shape(**options), with_peer)
    print(json_text(result, "bench", indent=2))
    return 0

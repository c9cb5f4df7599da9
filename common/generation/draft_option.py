"""The option that says where the drafts of a command come from."""

import argparse
from typing import Literal

# prompt: texts that a row's own prompt gives; reports: those of the training split; auto: all where a pass is bound by
# memory, as on GPUs and TPUs, and none on a CPU, where each draft costs arithmetic
Draft = Literal["auto", "none", "prompt", "reports", "all"]


def add_draft(options: argparse.ArgumentParser, *sources: str) -> None:
    """Add `--draft` with some of the sources."""
    options.add_argument(
        "--draft", choices=("auto", "none", *sources), default="auto",
        help="texts whose next words are tried several at a time; it changes how long writing takes, not what is "
        f"written (default: {sources[-1]} on GPUs and TPUs, none on a CPU)",
    )  # fmt: skip

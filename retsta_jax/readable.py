"""Which reports a run can standardize: what its prompts are made with, without its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.config import read_config
from common.data.cleaning import clean_report
from common.data.summary import already, data_line, unknown_share
from common.data.tokenizers import Tokenizer, load_tokenizer
from common.errors import UserError
from common.models.qwen2_weights import max_positions
from retsta_jax.config import RetstaConfig
from retsta_jax.prompts import prompt_tokens
from retsta_jax.train import base_directory

MOST_POSITIONS = 32_768  # that Qwen2.5 was trained on; for a base whose config.json does not say


class PromptEncoder(NamedTuple):
    """What makes prompts of reports: the config of a run, the directory of its base, and the tokenizer there."""

    config: RetstaConfig
    directory: Path
    tokenizer: Tokenizer


def read_encoder(run_dir: Path) -> PromptEncoder:
    """The encoder of a run directory, of which `config.json` alone is read. Raises UserError."""
    config = read_config(RetstaConfig, run_dir)
    directory = base_directory(config)
    return PromptEncoder(config, directory, load_tokenizer(directory))


def unusable(encoder: PromptEncoder, reports: Sequence[str]) -> list[str]:
    """Why each report cannot be standardized, "" where it can: it has no text, or leaves no room for an answer."""
    config = encoder.config
    limit = (max_positions(encoder.directory) or MOST_POSITIONS) - config.max_new_tokens

    def reason(report: str) -> str:
        text = clean_report(report)
        if not text:
            return "no report text"
        length = len(prompt_tokens(encoder.tokenizer, config.instruction, text))
        return f"longer than {limit} tokens with its instruction" if length > limit else ""

    return [reason(report) for report in reports]


def check_usable(encoder: PromptEncoder, reports: Sequence[tuple[str | int, str]], where: str) -> None:
    """Raise UserError naming the first of the (id, report) that cannot be standardized."""
    for (id_, _), reason in zip(reports, unusable(encoder, [report for _, report in reports]), strict=True):
        if reason:
            raise UserError(
                f"{where}: report {id_!r}: {reason}; the model needs the rest of its max_position_embeddings for "
                f"{encoder.config.max_new_tokens} new tokens (max_new_tokens); shorten the report or leave it out"
            )


def reports_line(encoder: PromptEncoder, source: str, reports: Sequence[str], done: int) -> str:
    """The line that names the reports of a file, of which `done` are standardized already."""
    tokenizer = encoder.tokenizer
    unknown = unknown_share(tokenizer, (tokenizer.encode(clean_report(report)) for report in reports))
    name = "standard input" if source == "-" else source
    return data_line(
        [name], "reports, cleaning lossless", {"reports": len(reports)}, unknown=unknown, notes=already(done)
    )

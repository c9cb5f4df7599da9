"""The command line of `retsta translate`."""

import functools
from pathlib import Path
from typing import Any

from common.data.records import Language, Quarantine
from common.data.summary import already, data_line, say_data
from common.endpoint import Endpoint, add_endpoint_options, endpoint_settings
from common.endpoint.protocol import parameters
from common.errors import Parser, UserError
from common.io.fingerprints import data_record
from retsta_jax.pairs import read_pairs
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import LANGUAGES, SHIPPED
from retsta_jax.translation.consistency import NAMES
from retsta_jax.translation.endpoint_translator import (
    CORRECTION,
    CORRECTIONS,
    MAX_TOKENS,
    SYSTEM,
    translate_by_endpoint,
)
from retsta_jax.translation.offline_translator import translate_offline
from retsta_jax.translation.phrase_table import TABLE
from retsta_jax.translation.translate import (
    Counts,
    Translator,
    check_ids,
    check_languages,
    quarantine_of,
    translate_file,
)


def translate(arguments: list[str]) -> None:
    """Run the command. Raises UserError."""
    options = Parser(
        "retsta translate",
        description="Translate report pairs, each with a check that its terms, eyes, certainty, degrees, places and "
        "numbers are those of the original. Without --endpoint it uses terminology and grammar, enough for generated "
        "reports.",
    )
    options.add_argument(
        "pairs", type=Path, help='JSONL rows {"id", "source", "target"}, with a "language" (en or zh) or without'
    )
    options.add_argument("--to", choices=LANGUAGES, required=True, help="the language to translate into")
    options.add_argument(
        "--output",
        type=Path,
        required=True,
        help='JSONL file to write or resume, rows {"id", "source", "target", "language", "from"}; pairs that could not '
        "be translated go to NAME.quarantine.jsonl next to it",
    )
    options.add_argument(
        "--terminology",
        type=Path,
        default=SHIPPED,
        help="CSV, TSV or JSON table of terms with names in both languages; default: the shipped one",
    )
    add_endpoint_options(options)
    chosen = options.parse_args(arguments)
    output: Path = chosen.output
    check_name(output, chosen.pairs)
    terms = load_terminology(chosen.terminology)
    check_languages(terms)
    endpoint = endpoint_settings(chosen, output.with_name(f"{output.stem}.answers.sqlite"), MAX_TOKENS)
    unusable = Quarantine()
    pairs = read_pairs(chosen.pairs, unusable)
    to: Language = chosen.to
    check_ids(pairs, to)
    if pairs and all(pair.language == to for pair in pairs):
        raise UserError(f"{chosen.pairs}: all pairs are in {NAMES[to]} already; give the other language as --to")
    counts = translate_file(
        pairs,
        translator_of(endpoint),
        terms,
        to,
        output,
        made_with(endpoint),
        lambda done: _say(chosen.pairs, len(pairs), unusable, done),
    )
    print(counts_text(counts, output), flush=True)


def check_name(output: Path, pairs: Path) -> None:
    """Raise UserError for an output that is the input, or whose other files would be."""
    for path in (output, quarantine_of(output)):
        if path.exists() and pairs.exists() and path.samefile(pairs):
            raise UserError(f"{path}: is the file of the pairs; choose another --output")
    if quarantine_of(output) == output:
        raise UserError(f"{output}: is the name of a quarantine; choose another --output")


def translator_of(endpoint: Endpoint | None) -> Translator:
    """The translator by an endpoint, or without one."""
    return functools.partial(translate_by_endpoint, endpoint=endpoint) if endpoint else translate_offline


def made_with(endpoint: Endpoint | None) -> dict[str, Any]:
    """What of a translator decides its translations; never a key."""
    if endpoint is None:
        return {"translator": "offline", "phrases": data_record([TABLE.read_text(encoding="utf-8")])}
    prompt = {"system": SYSTEM, "correction": CORRECTION, "corrections": CORRECTIONS}
    return {"translator": "endpoint", "url": endpoint.url, "model": endpoint.model, **parameters(endpoint), **prompt}


def counts_text(counts: Counts, output: Path) -> str:
    """The counts as lines."""
    failed = sum(counts.failed.values())
    lines = [f"{counts.translated:,} of {counts.translated + failed:,} pairs are translated: {output}"]
    if failed:
        lines.append(f"{failed:,} are not: {quarantine_of(output)}")
    lines += [f"  {reason}: {count:,}" for reason, count in sorted(counts.failed.items(), key=lambda one: -one[1])]
    return "\n".join(lines)


def _say(file: Path, pairs: int, unusable: Quarantine, done: int) -> None:
    say_data(data_line([file], "pairs", {"pairs": pairs}, quarantine=unusable, notes=already(done)))

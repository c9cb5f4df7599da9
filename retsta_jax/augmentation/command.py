"""`retsta augment`: more report pairs from few, as rows that training reads."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.bounds import COUNT, FEW, PROBABILITY, SEED, bounded
from common.data.records import Quarantine, ReportPair
from common.data.summary import already, data_line, say_data
from common.errors import Parser, UserError
from common.io.fingerprints import data_record
from common.io.jsonl import read_jsonl
from common.io.locks import locked_file, owning
from common.io.outputs import check_output
from common.io.resumable import claim_output, row_writer, rows_done
from common.io.terminal import printable, say
from common.metrics.tokenize import language_of
from retsta_jax.augmentation.augment import KINDS, Augmented, Corpus, augment, copy_ids, open_corpus, rates_of
from retsta_jax.config import AugmentConfig
from retsta_jax.pairs import PAIR, apart_from, pairs_of, read_pairs
from retsta_jax.terminology.check import load_terminology
from retsta_jax.terminology.terms import SHIPPED, Terminology

FACTOR = 5  # the paper's 2,000 -> 10,000


def run(arguments: list[str]) -> None:
    """Write the pairs of a file, unchanged, and new ones made of them."""
    chosen = _options().parse_args(arguments)
    config = AugmentConfig(**{name: getattr(chosen, name) for name in (*KINDS, "most_edits")})
    check_output(chosen.output, chosen.pairs, chosen.terminology, *chosen.held_out)
    size = chosen.factor, chosen.total
    write_augmented(chosen.pairs, chosen.output, size, config, chosen.seed, chosen.terminology, chosen.held_out)


def _options() -> Parser:
    options = Parser(
        "retsta augment",
        description="Make more report pairs of few: rows {id, source, target, language, kinds, from}, the originals "
        "first. Negation and probability change source and target, the other kinds the source alone.",
    )
    options.add_argument("pairs", type=Path, help='JSONL rows {"id", "source", "target", "language"?} to train on')
    size = options.add_mutually_exclusive_group()
    size.add_argument("--factor", type=bounded(COUNT), default=FACTOR, help=f"pairs of one; default {FACTOR}")
    size.add_argument("--total", type=bounded(COUNT), help="number of pairs in total, instead of a factor")
    options.add_argument("--output", type=Path, help="JSONL file to write or resume; default: standard output")
    options.add_argument(
        "--terminology", type=Path, default=SHIPPED, help="CSV, TSV or JSON table of terms; default: the shipped one"
    )
    options.add_argument(
        "--held-out", type=Path, nargs="+", default=[], help="JSONL pairs whose targets must not be generated"
    )
    options.add_argument("--seed", type=bounded(SEED), default=0)
    defaults = AugmentConfig()
    for kind in KINDS:
        rate = getattr(defaults, kind)
        options.add_argument(
            f"--{kind}", type=bounded(PROBABILITY, float), default=rate, help=f"share of new pairs; default {rate}"
        )
    options.add_argument(
        "--most-edits",
        type=bounded(FEW),
        default=defaults.most_edits,
        help=f"of one kind in a pair; default {defaults.most_edits}",
    )
    return options


@owning("output", locked_file)
def write_augmented(
    file: Path,
    output: Path | None,
    size: tuple[int, int | None],
    config: AugmentConfig,
    seed: int,
    terminology: Path,
    held_out: Sequence[Path],
) -> None:
    """Write or continue the rows; `size` is a factor, and a total that goes before it. Raises UserError beforehand."""
    terms, quarantine = load_terminology(terminology), Quarantine()
    read = read_jsonl(file, PAIR)
    pairs = pairs_of(read, file, quarantine)
    if not pairs:
        raise UserError(f"{file}: no pair has text on both sides; expected at least one")
    check_languages(file, pairs)
    factor, total = size
    total = total or factor * len(pairs)
    corpus = open_corpus(pairs, total, config, terms)
    apart = [pair for other in held_out for pair in read_pairs(other, Quarantine())]
    rows = {str(row["id"]): row for row in read}
    ids = [*(rows[pair.id]["id"] for pair in pairs), *copy_ids(pairs, total)]
    done = 0 if output is None else rows_done(output, ids, {"source": str, "target": str, "kinds": list})
    files, counts = [file, *held_out], {"pairs": len(pairs), "held out": len(apart)} if apart else {"pairs": len(pairs)}
    say_data(data_line(files, "report pairs", counts, quarantine=quarantine, notes=already(done)), rows_on_stdout=True)
    if output is not None:
        claim_output(output, _settings(corpus, config, seed, read, apart))
    made: list[Augmented] = []
    with row_writer(output) as write:
        for augmented in augment(corpus, range(done, total), config, seed, apart_from(apart)):
            write(_row(augmented, rows[augmented.origin]))
            made.append(augmented)
    say("\n".join(summary([one for one in made if one.pair.id != one.origin], config)), error=True)


def check_languages(file: Path, pairs: Sequence[ReportPair]) -> None:
    """Raise UserError for a pair that is not written in its language."""
    for pair in pairs:
        written = language_of(pair.source)
        if pair.language != written and not (pair.language == "zh" and language_of(pair.target) == "zh"):
            raise UserError(
                f"{file}: row {printable(pair.id)}: language is {pair.language!r}, and its source is written in "
                f"{written!r}; correct its language, or leave it out"
            )


def summary(made: Sequence[Augmented], config: AugmentConfig) -> list[str]:
    """How many of the new pairs got each kind of change, beside its rate, as lines of a table."""
    count = len(made)
    got = Counter(kind for one in made for kind in one.kinds)
    failed = Counter(kind for one in made for kind in one.impossible)
    lines = [f"made {count:,} new pairs"]
    if count:
        lines += [f"{'kind':>12} {'rate':>6} {'pairs':>15}  not applicable"]
        lines += [
            f"{kind:>12} {rate:>6.1%} {got[kind]:>7,} {got[kind] / count:>7.1%}  {failed[kind]:,}"
            for kind, rate in rates_of(config).items()
        ]
    unchanged = sum(not one.kinds for one in made)
    return lines + [f"{unchanged:,} of them as their originals: no kind was possible"] * bool(unchanged)


def _row(augmented: Augmented, original: Mapping[str, Any]) -> dict[str, Any]:
    pair = augmented.pair
    if pair.id == augmented.origin:
        return {**original, "language": pair.language, "kinds": [], "from": original["id"]}
    texts = {"source": pair.source, "target": pair.target, "language": pair.language}
    return {"id": pair.id, **texts, "kinds": list(augmented.kinds), "from": original["id"]}


def _settings(
    corpus: Corpus,
    config: AugmentConfig,
    seed: int,
    rows: Sequence[Mapping[str, Any]],
    apart: Sequence[ReportPair],
) -> dict[str, Any]:
    """What decides the rows, by content; more of them may be asked for later."""
    return {
        "pairs": data_record([row["id"], row["source"], row["target"], row.get("language")] for row in rows),
        "held_out": data_record([pair.source, pair.target] for pair in apart),
        "terminology": _record(corpus.terms),
        "rates": dataclasses.asdict(config),
        "seed": seed,
    }


def _record(terms: Terminology) -> str:
    return data_record(
        [term.id, term.kind, term.broader, *term.forms("zh"), "/", *term.forms("en"), *sorted(term.keys), *term.related]
        for term in terms.terms
    )

"""`medreport data show`: a page and a JSON file about a data set, whatever reads it."""

from pathlib import Path

from common.config_options import first_word
from common.data.builders.layouts import add_layout_options
from common.data.card import own_command
from common.data.summary import data_line, say_data
from common.errors import Parser, UserError
from common.io.mirror import with_addresses
from common.io.outputs import check_output, check_own_object, check_own_page, write_whole
from common.io.safetensors import write_json
from common.io.terminal import say
from common.options import check_options
from launch.data_card.measuring import as_object, measure
from launch.data_card.page import leak_text, render_card
from launch.data_card.reading import FILES, NEEDS, PAIRS, read_data

PROGRAM = "medreport data show"
DESCRIPTION = """Write a card of a data set, as trainings read it: a page with counts, quarantine, leaks between splits,
lengths, findings, identifiers of people and a few examples, and beside it a JSON file of the numbers, without any text.

Layouts are those of medreport prepare, what it makes (prepared), pairs of reports (pairs: --train, --validation,
--test), the codes of Open-i (openi-codes: --source ARCHIVE --split IDS), and generated data (phantom, fundus). Rows may
have a column patient; then patients in two splits are counted."""
KEYS = ("splits", "quarantine", "duplicates")  # of an earlier card


def main(arguments: list[str]) -> None:
    """`medreport data WORD`. Raises UserError."""
    word, rest = first_word("medreport data", ("show",), arguments)
    show(rest if word else arguments)


def show(arguments: list[str]) -> None:
    """Run the command. Raises UserError for whatever is wrong with the data, before anything is written."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    check_options(chosen, arguments, NEEDS, PROGRAM)
    numbers = chosen.output.with_suffix(".json")
    if chosen.output == numbers:
        raise UserError(f"--output {chosen.output}: is the page, which ends in .html; the numbers go into .json")
    inputs = [file for name in ("source", *FILES) if (file := getattr(chosen, name)) is not None]
    for output in (chosen.output, numbers):
        check_output(output, *inputs)
    check_own_page(chosen.output)
    check_own_object(numbers, KEYS)
    data = read_data(chosen)
    counts = {name: len(records) for name, records in data.splits.items()}
    say_data(data_line(data.files, f"{chosen.layout}, cleaning lossless", counts, quarantine=data.quarantine))
    found = measure(chosen, data)
    command = with_addresses(own_command(PROGRAM, parser, chosen))
    page = render_card(data, found, chosen.layout, command, numbers.name)
    write_whole(chosen.output, page)
    write_json(numbers, as_object(data, found, chosen.layout, command))
    for leak in found.leaks:
        say(leak_text(leak))
    if found.identifiers is not None and any(own.found for own in found.identifiers.values()):
        told = "; ".join(f"{name}: {own.summary()}" for name, own in found.identifiers.items() if own.found)
        say(f"warning: {told}", error=True)
    say(f"page: {chosen.output.absolute()}\nnumbers: {numbers.absolute()}")


def _parser() -> Parser:
    parser = Parser(PROGRAM, description=DESCRIPTION)
    add_layout_options(parser, (*PAIRS, "prepared", "phantom"))
    for name in FILES:
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"{name} pairs: JSONL rows or a table (pairs)")
    parser.add_argument(
        "--targets", choices=("reports", "codes"), default="reports", help="what standard reports are (pairs)"
    )
    parser.add_argument("--colour", action="store_true", help="show images in colour (grey if not given)")
    parser.add_argument(
        "--labeler", metavar="PATH", help="of findings: chexbert.pth, a trained labeler, or 'phantom' (studies)"
    )
    parser.add_argument("--labeler-tokenizer", type=Path, metavar="DIR", help="of the labeler, with vocab.txt")
    parser.add_argument(
        "--terminology", type=Path, metavar="FILE", help="findings by this table (fundus reports: the shipped one)"
    )
    parser.add_argument("--tokenizer", type=Path, metavar="DIR", help="of a model: adds lengths in tokens")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.html", help="page; the numbers beside it")
    return parser

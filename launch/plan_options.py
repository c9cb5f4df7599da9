"""The options of `medreport plan` that change a preset: what is trained, how it is stored, how a device computes."""

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from common.bounds import COUNT, bounded
from common.errors import Parser, UserError
from common.models.quantized import KINDS
from common.options import Needs, check_options, flag

OF_MODEL = ("base", "remat", "param_dtype", "loss_chunk", "tuning")  # fields of a preset's model
OF_LANGUAGE = ("remat", "param_dtype", "tuning", "dora")  # read for presets that train on a language model
OF_TEXT = ("sequence", "base")  # read for those that train on text alone
CHANGING = (*OF_MODEL, "dora", "sequence", "micro_batch")


def add_preset_options(parser: Parser) -> None:
    """Add the options, each with the preset's value where it is not given."""
    parser.add_argument("--model.base", dest="base", help="directory with the model's config.json (preset's)")
    parser.add_argument(
        "--micro-batch", type=bounded(COUNT), help="rows per device; if given, no other size is tried (preset's)"
    )
    parser.add_argument("--sequence", type=bounded(COUNT), help="tokens of a row (preset's)")
    parser.add_argument("--remat", choices=("none", "dots", "full"), help="(preset's)")
    parser.add_argument("--tuning", choices=("vision", "full", "lora"), help="what is trained (preset's)")
    parser.add_argument("--dora", action="store_true", default=None, help="adapters are those of DoRA (preset's)")
    parser.add_argument(
        "--param-dtype", choices=("float32", "bfloat16", *KINDS), help="of a frozen base or language model (preset's)"
    )
    parser.add_argument("--loss-chunk", type=bounded(COUNT), help="positions whose logits exist at one time (preset's)")


def refuse(options: argparse.Namespace, names: Sequence[str], models: str) -> None:
    """Raise UserError where one of these options is given to a preset of a model that does not read it."""
    if any(getattr(options, name) for name in names):
        flags = [flag("model.base" if name == "base" else name) for name in names]
        raise UserError(
            f"--preset {options.preset}: {', '.join(flags[:-1])} and {flags[-1]} are for {models}; leave them out"
        )


def changed(config: Any, options: argparse.Namespace) -> Any:
    """A preset's config with the options, but for the length of rows. Raises UserError for what it cannot be."""
    given = {name: value for name in OF_MODEL if (value := getattr(options, name))}
    tunings = typing.get_args(typing.get_type_hints(type(config.model))["tuning"])
    if given.get("tuning", tunings[0]) not in tunings:
        raise UserError(f"--preset {options.preset}: --tuning is {given['tuning']}; expected {' or '.join(tunings)}")
    model = dataclasses.replace(config.model, **given)
    lora = dataclasses.replace(config.lora, dora=bool(options.dora) or config.lora.dora)
    frozen = tuple(tuning for tuning in tunings if tuning != "full")
    needs = [Needs("param_dtype", "tuning", frozen), Needs("dora", "tuning", ("lora",))]
    named = [flag(name) for name in ("param_dtype", "dora") if getattr(options, name)]
    check_options(model, named, needs, "medreport plan")
    return dataclasses.replace(config, model=model, lora=lora, micro_batch=options.micro_batch or config.micro_batch)

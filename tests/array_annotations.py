"""Checks what the array annotations of the packages say while tests run: a letter is one size throughout a call."""

import functools
import operator
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beartype import beartype
from jaxtyping import AbstractArray

ROOT = Path(__file__).parent.parent
PACKAGES = ("common", "retsta_jax", "unicross_jax", "deer_jax")
# Small functions that tests call a hundred thousand times.
UNCHECKED = ("common.phantoms", "retsta_jax.labelling")


def annotated_modules() -> list[str]:
    """The modules that write shapes; in all others the hook would only cost time."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    annotated = [file.relative_to(ROOT) for file in files if "from jaxtyping import" in file.read_text()]
    modules = [".".join(file.with_suffix("").parts) for file in annotated]
    return [module for module in modules if not module.startswith(UNCHECKED)]


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Beartype for the arrays among the arguments and results of a function, alone or in tuples and unions.

    Other annotations are left to mypy. So are the fields of records, whose constructor comes here as `__init__`: they
    hold placeholders while JAX maps over trees.
    """
    hints = {name: shapes_of(hint) for name, hint in function.__annotations__.items()}
    function.__annotations__ = {name: hint for name, hint in hints.items() if hint is not Any}
    return beartype(function) if function.__annotations__ and function.__name__ != "__init__" else function


def shapes_of(hint: Any) -> Any:
    """Shape and dtype of an annotated array, or of a tuple or union of arrays; Any in place of everything else.

    JAX takes arrays of NumPy for its own, so here both pass for either. Of members whose number varies beartype looks
    at a random one, so they are Any.
    """
    members, origin = typing.get_args(hint), typing.get_origin(hint)
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return hint.dtype[Any, hint.dim_str]
    if origin is tuple and ... not in members:
        shapes = tuple(shapes_of(member) for member in members)
        return tuple[shapes] if any(shape is not Any for shape in shapes) else Any
    if origin in (typing.Union, types.UnionType):
        shapes = tuple(member if member is types.NoneType else shapes_of(member) for member in members)
        return Any if Any in shapes else functools.reduce(operator.or_, shapes)
    return Any

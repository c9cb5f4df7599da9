"""FLOPs of a program as JAX traces it, for models that are too varied for a formula.

XLA's cost analysis counts the body of a loop once, however often it runs, and the layers here are loops; this counts
the products in the trace and multiplies. Elementwise work is left out, as in `common.training.flops`.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from common.types import PyTree


def traced_flops(function: Callable[..., PyTree], *arguments: PyTree, iterations: int = 1) -> float:
    """FLOPs of the matrix products and convolutions of one call.

    `iterations` is how often a loop runs that decides its end itself (`while_loop`, unlike `scan`).
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr, iterations)


def _flops(jaxpr: Any, iterations: int) -> float:
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _of_product(equation.invars[0].aval.shape, equation.invars[1].aval.shape, params)
        elif name == "conv_general_dilated":
            total += _of_convolution(equation.outvars[0].aval.shape, equation.invars[1].aval.shape, params)
        else:
            times = {"scan": params.get("length", 1), "while": iterations}.get(name, 1)
            total += times * sum(_flops(inner, iterations) for inner in _inner(params))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            jaxpr = getattr(item, "jaxpr", item)
            if hasattr(jaxpr, "eqns"):
                yield jaxpr


def _of_product(left: tuple[int, ...], right: tuple[int, ...], params: dict[str, Any]) -> float:
    (_, contracted), (_, batch) = params["dimension_numbers"]
    columns = math.prod(size for axis, size in enumerate(right) if axis not in (*contracted, *batch))
    return 2.0 * math.prod(left) * columns


def _of_convolution(out: tuple[int, ...], kernel: tuple[int, ...], params: dict[str, Any]) -> float:
    """Padding counts as if it were data; the zeros between the elements of a dilated input do not count."""
    window = math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out) * window / math.prod(params["lhs_dilation"])

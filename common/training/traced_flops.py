"""FLOPs of a program as JAX traces it, for models that are too varied for a formula.

XLA's cost analysis counts the body of a loop once, however often it runs, and the layers here are loops; this counts
the products in the trace and multiplies. Elementwise work is left out, as in `common.training.flops`. Of a `cond` the
branch that costs most counts, unless the frequency of its condition is given.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from common.types import PyTree


class Runs(NamedTuple):
    """What a trace does not tell of its loops and branches."""

    iterations: int = 1  # of a loop that decides its end itself (`while_loop`, unlike `scan`)
    true_share: float | None = None  # how often the condition of a `cond` holds, from 0 to 1; None: not known


ONCE = Runs()


def traced_flops(function: Callable[..., PyTree], *arguments: PyTree, runs: Runs = ONCE) -> float:
    """FLOPs of the matrix products and convolutions of one call."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    return _counted(jaxpr, [False] * len(jaxpr.invars), runs).flops


def update_flops(loss: Callable[..., PyTree], trainable: PyTree, *arguments: PyTree, runs: Runs = ONCE) -> float:
    """Model FLOPs of `loss(trainable, *arguments)` and its gradient: what is computed again counts once.

    Each product of the forward pass costs as much again for each of its factors that depends on what is trained.
    """
    jaxpr = jax.make_jaxpr(loss)(trainable, *arguments).jaxpr
    trained = len(jax.tree.leaves(trainable))
    return _counted(jaxpr, [True] * trained + [False] * (len(jaxpr.invars) - trained), runs).flops


def shapes_of(tree: PyTree) -> PyTree:
    """What a trace needs of a tree of arrays."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


class _Count(NamedTuple):
    """FLOPs of a part of a program, and which of its results depend on what is trained."""

    flops: float
    depends: list[bool]


def _counted(jaxpr: Any, depends: Sequence[bool], runs: Runs) -> _Count:
    known = dict(zip(jaxpr.invars, depends, strict=True))

    def of(variable: Any) -> bool:
        # Nothing is differentiated with respect to what is not a real number.
        return known.get(variable, False) if isinstance(variable, jax.extend.core.Var) else False

    total = 0.0
    for equation in jaxpr.eqns:
        found = _of_equation(equation, [of(variable) for variable in equation.invars], runs)
        total += found.flops
        for variable, value in zip(equation.outvars, found.depends, strict=True):
            known[variable] = value and jnp.issubdtype(variable.aval.dtype, jnp.floating)
    return _Count(total, [of(variable) for variable in jaxpr.outvars])


def _of_equation(equation: Any, depends: list[bool], runs: Runs) -> _Count:
    name, params, outputs = equation.primitive.name, equation.params, len(equation.outvars)
    if name == "dot_general":
        own = _of_product(equation.invars[0].aval.shape, equation.invars[1].aval.shape, params)
        return _Count(own * (1 + sum(depends)), [any(depends)])
    if name == "conv_general_dilated":
        own = _of_convolution(equation.outvars[0].aval.shape, equation.invars[1].aval.shape, params)
        return _Count(own * (1 + sum(depends)), [any(depends)])
    if name == "scan":
        if "num_consts" in params:
            constants, carried = params["num_consts"], params["num_carry"]
        else:  # JAX 0.11: trees of the arguments, as (constants, carry, what is scanned over)
            constants, carried, _ = (len(tree) for tree in params["ft_in"].unpack())
        return _of_loop(params["jaxpr"].jaxpr, depends, constants, carried, params["length"], runs)
    if name == "while":
        skipped = params["cond_nconsts"]
        carried = len(depends) - skipped - params["body_nconsts"]
        return _of_loop(
            params["body_jaxpr"].jaxpr, depends[skipped:], params["body_nconsts"], carried, runs.iterations, runs
        )
    if name == "cond":
        branches = [_counted(branch.jaxpr, depends[1:], runs) for branch in params["branches"]]
        joined = [any(marks) for marks in zip(*(branch.depends for branch in branches), strict=True)]
        flops = [branch.flops for branch in branches]
        if runs.true_share is None or len(flops) != 2:
            return _Count(max(flops), joined)
        return _Count(flops[0] + runs.true_share * (flops[1] - flops[0]), joined)
    inner = [jaxpr for value in params.values() if hasattr(jaxpr := getattr(value, "jaxpr", value), "eqns")]
    parts = [
        _counted(one, depends if len(one.invars) == len(depends) else [any(depends)] * len(one.invars), runs)
        for one in inner
    ]
    exact = [part.depends for part in parts if len(part.depends) == outputs]
    return _Count(sum(part.flops for part in parts), exact[0] if exact else [any(depends)] * outputs)


def _of_loop(body: Any, depends: list[bool], constants: int, carried: int, length: int, runs: Runs) -> _Count:
    """A loop, whose carry depends on what is trained where any round makes it so."""
    depends = list(depends)
    while True:
        found = _counted(body, depends, runs)
        carry = [old or new for old, new in zip(depends[constants:], found.depends, strict=False)][:carried]
        if carry == depends[constants : constants + carried]:
            return _Count(length * found.flops, found.depends)
        depends[constants : constants + carried] = carry


def _of_product(left: tuple[int, ...], right: tuple[int, ...], params: dict[str, Any]) -> float:
    (_, contracted), (_, batch) = params["dimension_numbers"]
    columns = math.prod(size for axis, size in enumerate(right) if axis not in (*contracted, *batch))
    return 2.0 * math.prod(left) * columns


def _of_convolution(out: tuple[int, ...], kernel: tuple[int, ...], params: dict[str, Any]) -> float:
    """Padding counts as if it were data; the zeros between the elements of a dilated input do not count."""
    window = math.prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out) * window / math.prod(params["lhs_dilation"])

"""TPU slices that are not there: their devices, arrays as shapes, and what the compiler (libtpu) says of a program."""

import contextlib
import importlib.util
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from common.errors import UserError
from common.training.parallel import DeviceLayout, Rules, shardings
from common.types import PyTree
from launch.micro_batch_search import Compiled

GIB = 2**30
USABLE = 0.98  # of the memory; the runtime keeps the rest. The compiler alone is more hopeful


class Chip(NamedTuple):
    """What the data sheet says of one chip, in bytes and bytes a second."""

    hbm: float
    hbm_bandwidth: float
    ici_bandwidth: float  # all links, one direction


CHIPS = {
    "v4": Chip(32 * GIB, 1228e9, 300e9),
    "v5e": Chip(16 * GIB, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 1640e9, 448e9),
}


def topology_devices(name: str) -> list[Any]:
    """Abstract devices of a TPU slice. Raises UserError where there is no such slice, or no libtpu to ask."""
    if not re.fullmatch(rf"({'|'.join(CHIPS)}):\d+(x\d+){{1,2}}", name):
        raise UserError(f"--topology {name}: expected CHIP:SHAPE with a chip of {', '.join(CHIPS)}, such as v5e:2x4")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plan: the TPU compiler (libtpu) is not installed; pip install 'medreport-jax[plan]'")
    # Without these it looks for the metadata server of a TPU host, for minutes.
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # nothing here holds a TPU that others could want
    try:
        with quiet_stderr():
            return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (ValueError, NotImplementedError, jax.errors.JaxRuntimeError) as error:  # the last two are JAX's
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"--topology {name}: libtpu does not know this slice ({reason}); v5e:2x4 is one") from None


def compile_abstract(step: Any, arguments: Sequence[PyTree], layout: DeviceLayout) -> tuple[Compiled, Any]:
    """What the compiler says of a jitted step for abstract arguments; and the program, None where it does not fit."""
    started, processor = time.perf_counter(), time.process_time()
    with layout.context():
        lowered = step.lower(*arguments)
        try:
            with quiet_stderr():
                program = lowered.compile()
                memory = program.memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            placed, temporary = device_bytes(arguments), temporaries_refused(str(error))
            took = time.perf_counter() - started, time.process_time() - processor
            return Compiled(False, placed + temporary, placed, temporary, *took), None
    if memory is None:
        raise UserError("plan: this libtpu does not report memory; install the version in uv.lock")
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    took = time.perf_counter() - started, time.process_time() - processor
    return Compiled(True, total, memory.argument_size_in_bytes, memory.temp_size_in_bytes, *took), program


def temporaries_refused(message: str) -> int:
    """The bytes that the compiler says it would have needed; 0 where its message does not tell."""
    needed = re.search(r"\(([\d.]+)([KMG])\) exceeds available", message)
    return int(float(needed[1]) * {"K": 2**10, "M": 2**20, "G": GIB}[needed[2]]) if needed else 0


def device_bytes(tree: PyTree) -> int:
    """Bytes of one device's part of abstract arrays that have shardings."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def abstract(tree: PyTree, layout: DeviceLayout, rules: Rules) -> PyTree:
    """Shapes with the shardings that the arrays would have."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    if isinstance(tree, jax.ShapeDtypeStruct):
        return one(tree, NamedSharding(layout.mesh, PartitionSpec()))
    return jax.tree.map(one, tree, shardings(tree, layout, rules))


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what libtpu writes to file descriptor 2 off the terminal: warnings about a TPU host that is not there."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)

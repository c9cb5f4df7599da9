"""Which of several processes this one is, without importing JAX where it is not used."""

import sys


def is_first_process() -> bool:
    """Whether this process, of several, is the one that writes. Asks JAX only where it has joined others already."""
    return not has_several_processes() or sys.modules["jax"].process_index() == 0


def has_several_processes() -> bool:
    """Whether this process has joined others."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1

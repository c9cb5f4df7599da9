"""Chips by their data sheets, what XLA's compiler must be told of a GPU that is not there, and time floors from both.

A floor is what no step can beat: the FLOPs at the peak rate, the bytes that must be read at the memory's bandwidth, and
those that devices must exchange at that of their links, within a node and between nodes, each as if it overlapped with
all the rest. Beside it stands their sum, the time at the same rates if nothing overlapped.

Rates are the vendors', in one direction. TPUs: Cloud TPU's documentation (docs.cloud.google.com/tpu/docs, pages v5e,
v5p, v6e; of v6e the higher of two rates that it has named). GPUs: NVIDIA's data sheets, where NVLink counts both
directions (900 GB/s of an H100 or H200, 600 of an A100); an RTX 4090 has PCIe 4.0 x16. The network is that of DGX nodes
by their user guides: one adapter for each GPU, of 200 Gb/s in DGX A100 and of 400 Gb/s in DGX H100 and H200.
"""

from typing import Any, NamedTuple

from common.devices import GPU_MEMORY_FRACTION

GIB = 2**30


class Gpu(NamedTuple):
    """A GPU as its driver describes it; a core is a streaming multiprocessor."""

    name: str  # JAX's device_kind
    capability: tuple[int, int]
    cores: int
    threads_per_core: int
    fpus_per_core: int
    clock_ghz: float
    l2_cache: int
    shared_memory_per_core: int
    shared_memory_per_block: int  # at most, where a kernel asks for it


class Chip(NamedTuple):
    """Bytes, and bytes a second."""

    memory: int
    bandwidth: float
    links: float  # to the other devices of a slice or node: all links together, one direction
    usable: float = 0.98  # of the memory; the runtime keeps the rest. The compiler for TPUs alone is more hopeful
    gpu: Gpu | None = None
    network: float | None = None  # to other nodes, one direction, a device's share; None where nothing is published


def _gpu(memory: int, bandwidth: float, links: float, network: float | None, *description: Any) -> Chip:
    return Chip(memory, bandwidth, links, GPU_MEMORY_FRACTION, Gpu(*description), network)


# fmt: off
CHIPS = {
    "v4": Chip(32 * GIB, 1228e9, 300e9),
    "v5e": Chip(16 * GIB, 819e9, 200e9),
    "v5p": Chip(95 * GIB, 2765e9, 600e9),
    "v6e": Chip(32 * GIB, 1640e9, 448e9),
    "a100": _gpu(85100068864, 2039.04e9, 300e9, 25e9, "NVIDIA A100-SXM4-80GB",
                 (8, 0), 108, 2048, 64, 1.41, 41943040, 167936, 166912),
    "h100": _gpu(84942979072, 3352.32e9, 450e9, 50e9, "NVIDIA H100 80GB HBM3",
                 (9, 0), 132, 2048, 128, 1.98, 52428800, 233472, 232448),
    "h200": _gpu(151397597184, 4800e9, 450e9, 50e9, "NVIDIA H200",
                 (9, 0), 132, 2048, 128, 1.98, 52428800, 233472, 232448),
    "rtx4090": _gpu(25386352640, 1008e9, 32e9, None, "NVIDIA GeForce RTX 4090",
                    (8, 9), 128, 1536, 128, 2.52, 75497472, 102400, 101376),
}
# fmt: on


def gpu_target(chip: Chip, gpu: Gpu) -> str:
    """The description from which XLA compiles for a GPU (its GpuTargetConfigProto, as text)."""
    major, minor = gpu.capability
    # Hopper's matrix units are reached by "sm_90a" only.
    accelerated = " feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {gpu.threads_per_core}
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared_memory_per_core}
  shared_memory_per_block_optin: {gpu.shared_memory_per_block}
  core_count: {gpu.cores} fpus_per_core: {gpu.fpus_per_core} clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {gpu.l2_cache} device_memory_size: {chip.memory}
  cuda_compute_capability {{ major: {major} minor: {minor}{accelerated} }}
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 12 minor: 8 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def time_floor(
    chip: Chip, peak: float | None, flops: float, memory_bytes: float, link_bytes: float, network_bytes: float = 0.0
) -> dict[str, Any]:
    """Seconds of the work of one device at the rates of its data sheet, and which of them is the longest.

    `network_bytes` are those of `link_bytes` that come from other nodes.
    """
    seconds = {
        "compute": flops / peak if peak else 0.0,
        "memory": memory_bytes / chip.bandwidth,
        "links": (link_bytes - network_bytes) / chip.links,
    }
    if network_bytes:
        assert chip.network is not None
        seconds["network"] = network_bytes / chip.network
    bound = max(seconds, key=lambda name: seconds[name])
    return {
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "bound_by": bound,
        "seconds_at_least": seconds[bound],
        "seconds_without_overlap": sum(seconds.values()),
    }

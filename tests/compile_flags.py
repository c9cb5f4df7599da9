"""How XLA compiles in tests, which compile much and compute little: two thirds of the compile time are saved."""

from importlib.metadata import version

BEFORE_0_11 = ("--xla_cpu_use_fusion_emitters=false",) if version("jax") < "0.11" else ()  # an unknown flag is fatal
QUICK = " ".join((
    "--xla_backend_optimization_level=0",
    *BEFORE_0_11,
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # parts for 32 threads, which two workers on two cores do not have
    "--xla_disable_hlo_passes=tree_reduction_rewriter,cpu-parallel-task-assigner",  # they cut work in parts, as above
))  # fmt: skip
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"

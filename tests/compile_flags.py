"""How XLA compiles in tests, which compile much and compute little: two thirds of the compile time are saved."""

QUICK = " ".join((
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",  # parts for 32 threads, which two workers on two cores do not have
    "--xla_disable_hlo_passes=tree_reduction_rewriter,cpu-parallel-task-assigner",  # they cut work in parts, as above
))  # fmt: skip
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"

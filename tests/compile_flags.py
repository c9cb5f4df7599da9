"""How XLA compiles in tests, which compile much and compute little: two thirds of the compile time are saved."""

QUICK = " ".join((
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_llvm_disable_expensive_passes=true",
))  # fmt: skip
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"

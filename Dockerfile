# An image for GPU nodes, with the versions of uv.lock. The host provides the NVIDIA driver and its container toolkit.
#   docker build --build-arg EXTRA=cuda12 --tag medreport-jax .
#   docker run --gpus all --volume "$PWD/runs:/runs" medreport-jax retsta --help
FROM python:3.12-slim-bookworm

ARG EXTRA=cuda13

ENV UV_PROJECT_ENVIRONMENT=/opt/medreport \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    PATH=/opt/medreport/bin:$PATH

RUN pip install --no-cache-dir "uv>=0.9,<1"

WORKDIR /src

# What is locked changes less often than the source, so it has a layer of its own.
COPY pyproject.toml uv.lock README.md LICENSE ./
RUN uv sync --locked --no-dev --no-cache --no-install-project --extra "${EXTRA}" --extra endpoint --extra stores --extra wandb

COPY common ./common
COPY retsta_jax ./retsta_jax
COPY unicross_jax ./unicross_jax
COPY deer_jax ./deer_jax
COPY launch ./launch
RUN uv sync --locked --no-dev --no-cache --no-editable --extra "${EXTRA}" --extra endpoint --extra stores --extra wandb

# Compiled programs are kept beside the runs.
ENV JAX_COMPILATION_CACHE_DIR=/runs/.jax-cache
RUN useradd --create-home --uid 1000 medreport && mkdir /runs && chown 1000 /runs
USER 1000
WORKDIR /runs
CMD ["retsta", "--help"]

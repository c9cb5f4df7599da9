# An image for nodes with GPUs (EXTRA=cuda13 or cuda12) or TPUs (EXTRA=tpu), with the versions of uv.lock. A host with GPUs
# provides the NVIDIA driver and its container toolkit. For SkyPilot, which needs root in the container: RUN_AS=0.
#   docker build --build-arg EXTRA=cuda12 --tag medreport-jax .
#   mkdir -p runs
#   docker run --gpus all --shm-size 16g --user "$(id -u)" --volume "$PWD/runs:/runs" medreport-jax retsta --help
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

RUN useradd --create-home --uid 1000 medreport && mkdir /runs && chown 1000 /runs
ARG RUN_AS=1000
USER ${RUN_AS}
WORKDIR /runs
CMD ["retsta", "--help"]

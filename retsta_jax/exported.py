"""A model to standardize reports from whatever directory holds one: a run, its exported adapter, or a whole model."""

import dataclasses
from pathlib import Path

import jax

from common.config import CONFIG_FILE, read_config
from common.errors import UserError
from common.io.text import read_json_object
from common.models.adapters import load_adapter
from common.models.quantized import stored_as
from common.models.qwen2 import SHARDING_RULES
from common.models.qwen2_weights import param_shapes
from common.training.checkpoint import has_checkpoints
from common.training.parallel import device_put_tree, generation_layout
from retsta_jax.config import EMBEDDED_ADAPTER, RetstaConfig
from retsta_jax.standardize import Trained, load_trained
from retsta_jax.train import load_base

ADAPTER_CONFIG = "adapter_config.json"  # of PEFT


def load_embedded() -> Trained:
    """The shipped model: the small base with an adapter that was trained on generated fundus reports."""
    return load_model(EMBEDDED_ADAPTER)


def load_model(directory: Path) -> Trained:
    """The model in a run directory, a PEFT adapter's, or a Hugging Face directory of a supported family.

    An adapter stands on the base that its run's `config.json` names, in its own directory or the one around it, and
    otherwise on the one that PEFT recorded. Where no run's config is found, the instruction is that of
    `RetstaConfig`. Raises UserError where there is no model, or its files do not fit together.
    """
    if (directory / ADAPTER_CONFIG).is_file():
        return _with_adapter(directory)
    if has_checkpoints(directory):
        return load_trained(directory)
    if not (directory / CONFIG_FILE).is_file():
        raise UserError(f"{directory}: contains no model; expected a run directory, an adapter's or a model's")
    return _whole(directory)


def _with_adapter(directory: Path) -> Trained:
    config = _config_beside(directory)
    if config is None:
        name = read_json_object(directory / ADAPTER_CONFIG).get("base_model_name_or_path")
        if not isinstance(name, str) or not Path(name).is_dir():
            raise UserError(f"{directory / ADAPTER_CONFIG}: base_model_name_or_path names no directory of this machine")
        config = _on_base(RetstaConfig(), name)
    layout = generation_layout(devices=jax.local_devices())
    base = load_base(config, layout)
    if stored_as(config.model.param_dtype)[1] is None:
        lora, *trees = load_adapter(directory, base.config, base.params)
    else:  # whose kernels are not there to be matched by name
        lora, adapters, _ = load_adapter(directory, base.config, param_shapes(base.config))
        trees = [adapters, base.params]
    adapters, params = (device_put_tree(tree, layout, SHARDING_RULES) for tree in trees)
    base = base._replace(params=params)
    return Trained(dataclasses.replace(config, lora=lora), base, adapters, {"params": params}, 0, layout)


def _whole(directory: Path) -> Trained:
    config = _on_base(_config_beside(directory) or RetstaConfig(), str(directory))
    layout = generation_layout(devices=jax.local_devices())
    base = load_base(config, layout)  # as a frozen one: what is not trained further may stay in bfloat16
    whole = dataclasses.replace(config, model=dataclasses.replace(config.model, tuning="full"))
    return Trained(whole, base, base.params, {}, 0, layout)


def _on_base(config: RetstaConfig, base: str) -> RetstaConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, base=base, tuning="lora"))


def _config_beside(directory: Path) -> RetstaConfig | None:
    """The config of the run that exported a model: in its directory, or in the one around it."""
    for folder in (directory, directory.absolute().parent):
        file = folder / CONFIG_FILE
        if file.is_file() and "instruction" in read_json_object(file):
            config = read_config(RetstaConfig, folder)
            model = dataclasses.replace(config.model, attention="auto")
            return dataclasses.replace(config, parallel="jit", model=model)
    return None

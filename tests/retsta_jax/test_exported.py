"""A model is read from its run, from the adapter that the run exported, and from a directory of Hugging Face."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from common.errors import UserError
from retsta_jax.exported import load_embedded, load_model
from retsta_jax.standardize import standardize


def test_a_run_and_its_adapter_are_the_same_model(retsta_run):
    run, adapter = load_model(retsta_run), load_model(retsta_run / "adapter")
    assert adapter.config.instruction == run.config.instruction == "Standardize"
    assert adapter.config.lora.rank == run.config.lora.rank
    for own, other in zip(jax.tree.leaves(adapter.trainable), jax.tree.leaves(run.trainable), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-6)
    texts = ["OD: drusen", "左眼出血"]
    (first, second) = ([one.text for one in standardize(one, one.variables, texts, 1)] for one in (run, adapter))
    assert first == second


def test_a_whole_model_needs_no_adapter(material):
    trained = load_model(material.base)
    assert not trained.frozen
    assert len(list(standardize(_shortened(trained), trained.variables, ["OD: drusen"], 1))) == 1


def test_an_adapter_of_elsewhere_stands_on_the_base_that_it_names(retsta_run, material, tmp_path):
    shutil.copytree(retsta_run / "adapter", tmp_path / "elsewhere" / "adapter")
    trained = load_model(tmp_path / "elsewhere" / "adapter")
    assert trained.base.directory == material.base
    file = tmp_path / "elsewhere" / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "Qwen/Qwen2.5-7B"}))
    with pytest.raises(UserError, match="base_model_name_or_path names no directory of this machine"):
        load_model(tmp_path / "elsewhere" / "adapter")


def test_a_directory_without_a_model_is_one_line(tmp_path):
    with pytest.raises(UserError, match="contains no model; expected a run directory, an adapter's or a model's"):
        load_model(tmp_path)


def test_the_shipped_adapter_names_terms_as_the_terminology_does():
    trained = load_embedded()
    (found,) = standardize(trained, trained.variables, ["OD: drusen, no ME."], 1)
    assert found.complete
    assert found.text == "Right eye: drusen; no macular oedema."


def _shortened(trained):
    return trained._replace(config=dataclasses.replace(trained.config, max_new_tokens=4))

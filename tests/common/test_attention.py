"""Which attention runs where, and that the shapes of parameters do not depend on it."""

import dataclasses

import pytest

from common.errors import UserError
from common.models import layers
from common.models.attention import attention_line, check_implementation
from common.models.qwen2_weights import param_shapes
from tests.runs import SIZES


@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_shapes_do_not_ask_for_an_attention_that_this_platform_lacks(implementation):
    assert param_shapes(dataclasses.replace(SIZES, attention=implementation)) == param_shapes(SIZES)


def test_an_attention_of_another_platform_is_refused(monkeypatch):
    check_implementation("auto")
    check_implementation("xla")
    for implementation, platform in (("splash", "TPU"), ("cudnn", "GPU")):
        with pytest.raises(UserError, match=f"{implementation} runs on a {platform}, and JAX found cpu; give"):
            check_implementation(implementation)
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    check_implementation("splash")


def test_the_line_says_which_attention_runs_on_which_rows(monkeypatch):
    assert attention_line("auto", {64, 256}, 128, "float32") == "attention: xla"
    monkeypatch.setattr(layers, "platform", lambda: "tpu")
    line = attention_line("auto", {256, 64, 128}, 128, "bfloat16")
    assert line == "attention: xla on rows of 64; splash on rows of 128, 256"

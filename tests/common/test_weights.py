"""Published weights: strict reading with errors that name tensor and file, whole writing, fingerprints, shards."""

import dataclasses
import json
import resource
from collections import defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from common.errors import UserError
from common.io.exports import atomic_directory
from common.io.fingerprints import fingerprint, fingerprint_directory
from common.io.safetensors import Published, StoredTensor, load_tree, open_tensors, write_json, write_tensors
from common.models.qwen2 import Qwen2Config, init_params
from common.models.qwen2_weights import config_from_directory, load_qwen2, name_map, param_shapes, save_qwen2

TINY = Qwen2Config(
    vocab_size=37, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, rope_theta=1e4, tie_word_embeddings=True,
)  # fmt: skip
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def params():
    return init_params(TINY, jax.random.key(0))


@pytest.fixture
def published(params, tmp_path):
    save_qwen2(tmp_path / "single", TINY, params)
    return tmp_path / "single"


@pytest.fixture
def sharded(params, tmp_path):
    save_qwen2(tmp_path / "sharded", TINY, params, max_shard_bytes=4000)
    return tmp_path / "sharded"


def change(directory, edit):
    """Rewrite the single file with its tensors edited in place."""
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def change_config(directory, **entries):
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


def test_what_is_written_is_read_back_bit_for_bit(params, published, sharded):
    for directory in (published, sharded):
        config, again = load_qwen2(directory)
        assert config == TINY
        jax.tree.map(np.testing.assert_array_equal, again, params)
    with safe_open(published / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_published_layout_of_one_matrix(params, published):
    stored = load_file(published / "model.safetensors")
    np.testing.assert_array_equal(stored[UP], params["layers"]["mlp"]["up_proj"]["kernel"][1].T)
    np.testing.assert_array_equal(stored["model.embed_tokens.weight"], params["embed_tokens"])
    assert "lm_head.weight" not in stored


def test_shards_keep_their_limit_and_the_index_its_sums(sharded):
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(files)
    sizes = [sum(tensor.nbytes for tensor in load_file(sharded / file).values()) for file in files]
    assert max(sizes) <= 4000
    assert index["metadata"]["total_size"] == sum(sizes)


def damage_missing(tensors):
    del tensors[UP]


def damage_surplus(tensors):
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors[UP]


def damage_shape(tensors):
    tensors[UP] = np.ascontiguousarray(tensors[UP].T)


def damage_nan(tensors):
    tensors[UP][3, 5] = np.nan


def damage_infinite(tensors):
    tensors["model.layers.0.self_attn.k_proj.bias"][-1] = np.inf


def damage_integer(tensors):
    tensors[UP] = tensors[UP].astype(np.int8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_missing, rf"tensor {UP} is missing; expected 26 tensors, found 25"),
        (damage_surplus, r"model.safetensors: tensor model.layers.2.mlp.up_proj.weight is surplus"),
        (damage_shape, rf"model.safetensors: tensor {UP} has shape \[16, 24\], expected \[24, 16\]"),
        (damage_nan, rf"model.safetensors: tensor {UP} holds values that are not finite"),
        (damage_infinite, r"tensor model.layers.0.self_attn.k_proj.bias holds values that are not finite"),
        (damage_integer, rf"model.safetensors: tensor {UP} is I8, expected one of F64, F32, F16, BF16"),
    ],
)
def test_a_damaged_tensor_is_named_with_its_file(published, damage, message):
    change(published, damage)
    with pytest.raises(UserError, match=message):
        load_qwen2(published)


def test_a_value_too_large_for_the_wanted_dtype_is_not_silently_infinite(published):
    change(published, lambda tensors: tensors[UP].__setitem__((0, 0), 1e6))
    load_qwen2(published, param_dtype="bfloat16")
    with pytest.raises(UserError, match=rf"{UP} holds values that are not finite as float16"):
        load_qwen2(published, param_dtype="float16")


@pytest.mark.parametrize("kept", [4, 200, -1])
def test_a_truncated_file_is_named(published, sharded, kept):
    for file in (published / "model.safetensors", sorted(sharded.glob("*.safetensors"))[1]):
        file.write_bytes(file.read_bytes()[:kept])
        with pytest.raises(UserError, match=rf"{file.name}: not a complete safetensors file"):
            load_qwen2(file.parent)


def test_index_and_shards_must_agree(sharded):
    index_file = sharded / "model.safetensors.index.json"
    index = json.loads(index_file.read_text())
    some, file = next(iter(index["weight_map"].items()))

    def load_with(weight_map):
        index_file.write_text(json.dumps({"weight_map": weight_map}))
        load_qwen2(sharded)

    with pytest.raises(UserError, match=rf"{file}: tensor {some} is not listed"):
        load_with({name: held for name, held in index["weight_map"].items() if name != some})
    with pytest.raises(UserError, match=rf"{file}: tensor extra is missing"):
        load_with({**index["weight_map"], "extra": file})
    with pytest.raises(UserError, match="expected a file of the same directory"):
        load_with({some: "../elsewhere.safetensors"})
    index_file.write_text("{}")
    with pytest.raises(UserError, match="no 'weight_map'"):
        load_qwen2(sharded)
    index_file.write_text(json.dumps(index))
    (sharded / file).unlink()
    with pytest.raises(UserError, match=rf"{file}: no such file"):
        load_qwen2(sharded)


def test_a_directory_without_weights_or_config_is_named(published, tmp_path):
    (published / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"no model.safetensors and no model.safetensors.index.json"):
        load_qwen2(published)
    with pytest.raises(UserError, match=r"config.json: cannot be read"):
        load_qwen2(tmp_path / "nowhere")


def test_a_tied_checkpoint_may_repeat_its_head_but_not_hold_another(params, published):
    def repeat(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    change(published, repeat)
    jax.tree.map(np.testing.assert_array_equal, load_qwen2(published)[1], params)
    change(published, lambda tensors: tensors["lm_head.weight"].__setitem__((36, 15), 9.0))
    with pytest.raises(UserError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        load_qwen2(published)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "mistral"}, "model_type is 'mistral', expected 'qwen2' or 'llama' or 'glm'"),
        ({"model_type": "llama"}, "tensors model.layers.0.self_attn.k_proj.bias.* are surplus"),
        ({"use_sliding_window": True, "max_window_layers": 1, "layer_types": None}, "use_sliding_window is not"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "use_sliding_window is not implemented"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 4.0}, "rope_parameters": None},
            "rotary type is 'dynamic', expected 'default' or",
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
            "rotary factor is missing, expected a number",
        ),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2, "beta_fast": "x"}}, "rotary beta_fast is 'x'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_size": None}, "hidden_size is missing, expected a whole number, at least 1"),
        ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
        ({"torch_dtype": "float8"}, "torch_dtype is 'float8'"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types has 3 entries, expected num_hidden_layers 2"),
        ({"layer_types": 2}, "layer_types is 2, expected a list"),
        ({"rope_parameters": {"rope_theta": "abc"}}, "rotary rope_theta is 'abc', expected a number, above 0"),
        ({"rope_parameters": "abc"}, "rope_parameters is 'abc', expected an object"),
        ({"num_key_value_heads": "2"}, "num_key_value_heads is '2', expected a whole number"),
        ({"num_key_value_heads": -2}, "num_key_value_heads is -2, expected a whole number"),
        ({"head_dim": "8"}, "head_dim is '8', expected a whole number"),
        ({"hidden_size": 20, "head_dim": 4}, r"has shape \[37, 16\], expected \[37, 20\]"),
        ({"num_hidden_layers": 1, "layer_types": None}, r"tensors model.layers.1.* are surplus"),
        ({"tie_word_embeddings": False}, r"tensor lm_head.weight is missing"),
    ],
)
def test_a_config_that_is_not_ours_or_does_not_fit_is_refused(published, entries, message):
    change_config(published, **entries)
    with pytest.raises(UserError, match=message):
        load_qwen2(published)


def test_a_window_that_no_layer_uses_is_accepted(published):
    change_config(published, use_sliding_window=True, sliding_window=8, max_window_layers=2, layer_types=None)
    assert load_qwen2(published)[0].num_hidden_layers == 2


def test_rotary_base_in_both_styles_of_config(published):
    change_config(published, rope_parameters=None, rope_scaling=None, rope_theta=5e5)
    assert config_from_directory(published).rope_theta == 5e5
    change_config(published, rope_parameters={"rope_type": "default", "rope_theta": 7e5})
    assert config_from_directory(published).rope_theta == 7e5


def test_convolutions_scalars_integers_and_absent_layers(tmp_path):
    kernel = np.arange(2 * 3 * 5 * 7, dtype=np.float32).reshape(2, 3, 5, 7)
    tensors = {
        "conv": kernel,
        "scale": np.asarray(3.5, np.float32),
        "ids": np.arange(4),
        "layer.1": np.ones(2, np.float32),
    }
    with atomic_directory(tmp_path / "out") as aside:
        write_tensors(aside, tensors.items())
    shapes = {
        "conv": jax.ShapeDtypeStruct((5, 7, 3, 2), jnp.float32),
        "scale": jax.ShapeDtypeStruct((), jnp.float32),
        "ids": jax.ShapeDtypeStruct((4,), jnp.int32),
        "layer": jax.ShapeDtypeStruct((3, 2), jnp.bfloat16),
    }
    names = {
        "conv": Published(("conv",), axes=(2, 3, 1, 0)),
        "scale": Published(("scale",)),
        "ids": Published(("ids",)),
        "layer": Published((None, "layer.1", None), stacked=True),
    }
    tree = load_tree(open_tensors(tmp_path / "out"), shapes, names, where=tmp_path)
    np.testing.assert_array_equal(tree["conv"], kernel.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(tree["layer"], [[0, 0], [1, 1], [0, 0]])
    assert (float(tree["scale"]), tree["ids"].tolist()) == (3.5, [0, 1, 2, 3])
    assert {name: leaf.dtype for name, leaf in tree.items()} == {name: leaf.dtype for name, leaf in shapes.items()}


def test_an_export_appears_whole_or_not_at_all(params, published):
    before = fingerprint_directory(published)

    def stopped_half_way():
        yield "a", np.ones(3)
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"), atomic_directory(published) as aside:
        write_tensors(aside, stopped_half_way(), max_bytes=1)
    assert fingerprint_directory(published) == before
    save_qwen2(published, TINY, jax.tree.map(lambda leaf: leaf + 1, params), max_shard_bytes=4000)
    assert fingerprint_directory(published) != before
    assert not (published / "model.safetensors").exists()
    assert [path.name for path in published.parent.iterdir()] == [published.name]


def test_an_export_never_replaces_foreign_files(params, published):
    (published / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"contains thesis.tex"):
        save_qwen2(published, TINY, params)
    assert (published / "thesis.tex").read_text() == "years of work"
    assert [path.name for path in published.parent.iterdir()] == [published.name]


def test_an_unwritable_place_is_named(params, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out: cannot be written"):
        save_qwen2(tmp_path / "file" / "out", TINY, params)


def test_fingerprints_see_every_change(params, published, sharded):
    reference = fingerprint(params)
    assert reference == fingerprint(jax.tree.map(np.asarray, params))
    for path in (("norm", "scale"), ("embed_tokens",)):
        changed = jax.tree.map(np.array, params)
        holder = changed if len(path) == 1 else changed[path[0]]
        holder[path[-1]].reshape(-1)[-1] += 1e-3
        assert fingerprint(changed) != reference
    assert fingerprint({"a": np.zeros(4, np.float32)}) != fingerprint({"b": np.zeros(4, np.float32)})
    assert fingerprint({"a": np.zeros((2, 2), np.float32)}) != fingerprint({"a": np.zeros(4, np.float32)})
    assert fingerprint({"a": np.zeros(4, np.float32)}) != fingerprint({"a": np.zeros(4, np.int32)})
    assert fingerprint_directory(published) == fingerprint_directory(sharded)
    change(published, damage_nan)
    assert fingerprint_directory(published) != fingerprint_directory(sharded)


def test_the_fingerprint_of_a_large_directory_reads_little_of_it(tmp_path):
    table = np.zeros((40_000, 64), np.float32)
    directory = tmp_path / "large"

    def written():
        with atomic_directory(directory) as aside:
            write_tensors(aside, [("table", table)])
        return fingerprint_directory(directory)

    before = written()
    assert written() == before
    table[-1, -1] = 1
    assert written() != before


def test_only_the_slices_of_a_shard_are_read(params, published):
    """On eight devices each reads its own part, replicas share one, and the values are those of one device."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def place(path, leaf):
        split = [None] * leaf.ndim
        if path[-1].key == "kernel":
            split[1] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*split))

    shapes = param_shapes(TINY)
    shardings = jax.tree_util.tree_map_with_path(place, shapes)
    sizes = defaultdict(list)

    def counted(tensor):
        def read(index):
            part = tensor.read(index)
            sizes[tensor.name].append(part.size)
            return part

        return dataclasses.replace(tensor, read=read)

    stored = {name: counted(tensor) for name, tensor in open_tensors(published).items()}
    spread = load_tree(stored, shapes, name_map(TINY), where=published, shardings=shardings)
    assert jax.tree.map(lambda leaf: leaf.sharding, spread) == shardings
    jax.tree.map(np.testing.assert_array_equal, spread, params)
    assert fingerprint(spread) == fingerprint(params)
    assert sizes[UP] == [16 * 24 // 4] * 4
    assert sizes["model.norm.weight"] == [16]
    everywhere = load_qwen2(published, shardings=NamedSharding(mesh, PartitionSpec()))[1]
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(everywhere))


def test_nothing_is_read_when_names_or_shapes_are_wrong(published):
    def never(index):
        raise AssertionError("a tensor was read before all headers were checked")

    stored: dict[str, StoredTensor] = {
        name: dataclasses.replace(tensor, read=never) for name, tensor in open_tensors(published).items()
    }
    stored[UP] = dataclasses.replace(stored[UP], shape=(1, 1))
    with pytest.raises(UserError, match=r"has shape \[1, 1\]"):
        load_tree(stored, param_shapes(TINY), name_map(TINY), where=published)


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path):
    file = tmp_path / "metrics.json"
    write_json(file, {"F1": 0.5})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 12, limits[1]))  # what a full disk does: the rest is refused
    try:
        with pytest.raises(UserError, match="cannot be written"):
            write_json(file, {"F1": "x" * (1 << 16)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert json.loads(file.read_text()) == {"F1": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    with pytest.raises(UserError, match="nowhere: cannot be written"):
        write_json(tmp_path / "nowhere" / "metrics.json", {})

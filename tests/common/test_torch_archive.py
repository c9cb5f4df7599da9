"""PyTorch files read without PyTorch: every layout and dtype, damage by name, and nothing is executed."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict

import jax.numpy as jnp
import numpy as np
import pytest

from common.errors import UserError
from common.io.torch_archive import read_archive

torch = pytest.importorskip("torch")

TENSORS = OrderedDict(
    wide=torch.arange(12, dtype=torch.float64).reshape(3, 4),
    plain=torch.linspace(-1, 1, 6).reshape(2, 3),
    half=torch.linspace(-1, 1, 6, dtype=torch.float16),
    brain=torch.linspace(-1, 1, 6, dtype=torch.bfloat16),
    long=torch.arange(-3, 3),
    byte=torch.arange(5, dtype=torch.uint8),
    flag=torch.tensor([True, False]),
    scalar=torch.tensor(2.5),
    empty=torch.zeros(0, 3),
    transposed=torch.arange(6.0).reshape(2, 3).T,
    column=torch.arange(12.0).reshape(3, 4)[:, 1],
)
NAMES = {"wide": "F64", "plain": "F32", "half": "F16", "brain": "BF16", "long": "I64", "byte": "U8", "flag": "BOOL"}


@pytest.fixture(params=["zip", "legacy"])
def file(request, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=request.param == "zip")
    return path


def whole(tensor):
    return tensor.read(tuple(slice(None) for _ in tensor.shape))


def pickled_archive(path, data, name="data.pkl"):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"archive/{name}", data)
    return path


def test_every_dtype_and_layout(file):
    stored = read_archive(file)
    assert list(stored) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert stored[name].shape == tuple(tensor.shape)
        found = whole(stored[name])
        if name == "brain":
            assert found.dtype == jnp.bfloat16
            found, tensor = found.astype(np.float32), tensor.float()
        np.testing.assert_array_equal(found, tensor.numpy())
        assert found.dtype == tensor.numpy().dtype
    assert {name: stored[name].dtype for name in NAMES} == NAMES


def test_a_part_is_read_by_slices(file):
    stored = read_archive(file)
    np.testing.assert_array_equal(stored["wide"].read((slice(1, 3), slice(0, 2))), [[4, 5], [8, 9]])
    np.testing.assert_array_equal(stored["transposed"].read((slice(2, 3), slice(0, 2))), [[2, 5]])


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict"])
def test_training_checkpoints_and_data_parallel_names(tmp_path, wrapper):
    state = {f"module.{name}": torch.nn.Parameter(TENSORS[name]) for name in ("plain", "wide")}
    torch.save({"epoch": 7, wrapper: state, "optimizer": {"lr": 0.1, "sums": [torch.ones(2)]}}, tmp_path / "c.pth")
    stored = read_archive(tmp_path / "c.pth")
    assert set(stored) == {"plain", "wide"}
    np.testing.assert_array_equal(whole(stored["plain"]), TENSORS["plain"])


def test_torchscript_without_its_code(tmp_path):
    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 3)
            self.norm = torch.nn.BatchNorm1d(3)
            self.sizes = [1, 2]
            self.table = {"a": 1.5}
            self.register_buffer("steps", torch.tensor(9))

        def forward(self, x):
            return self.norm(self.linear(x)) * self.sizes[0]

    model = torch.nn.Sequential(Inner(), torch.nn.ReLU()).eval()
    torch.jit.script(model).save(str(tmp_path / "script.pt"))
    stored = read_archive(tmp_path / "script.pt")
    expected = model.state_dict()
    assert stored.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(whole(stored[name]), tensor.numpy())


class Attack:
    def __init__(self, called, *arguments):
        self.call = called, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("layout", ["zip", "legacy", "bare pickle"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_is_executed(tmp_path, layout, protocol):
    victim, path = tmp_path / "victim", tmp_path / "evil.pt"
    attack = pickle.dumps({"weight": Attack(os.system, f"touch {victim}")}, protocol)
    if layout == "zip":
        pickled_archive(path, attack)
    else:
        headers = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}] if layout == "legacy" else []
        path.write_bytes(b"".join(pickle.dumps(header, 2) for header in headers) + attack)
    with pytest.raises(UserError, match=r"evil\.pt: (refused: it asks to load (posix|nt)\.system|not a PyTorch file)"):
        read_archive(path)
    assert not victim.exists()
    pickle.loads(attack)  # the attack itself works
    assert victim.exists()


@pytest.mark.parametrize(
    "attack", [Attack(eval, "1"), Attack(getattr, "", "join"), Attack(__import__, "os"), Attack(io.open, "/dev/null")]
)
def test_other_globals_are_refused(tmp_path, attack):
    with pytest.raises(UserError, match=r"refused: it asks to load \w+\.\w+"):
        read_archive(pickled_archive(tmp_path / "evil.pt", pickle.dumps(attack)))


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_numbers_beside_the_weights_are_passed_over(tmp_path, protocol):
    state = torch.nn.Linear(2, 3).state_dict()
    saved = {"epoch": 3, "best": np.float64(0.7), "model_state_dict": state, "step": np.int64(5)}
    torch.save(saved, tmp_path / "chexbert.pth", pickle_protocol=protocol)
    stored = read_archive(tmp_path / "chexbert.pth")
    assert stored.keys() == state.keys()
    np.testing.assert_array_equal(whole(stored["weight"]), state["weight"].numpy())


def test_a_whole_pickled_model_is_refused_with_advice(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"asks to load torch\.nn\.modules\.linear\.Linear, .* save a state dict"):
        read_archive(tmp_path / "model.pt")


def crafted(offset, shape, strides):
    """A pickle, in opcodes, of one float32 tensor over a storage of 4 numbers."""

    def numbers(values):
        return b"(" + b"".join(b"I%d\n" % value for value in values) + b"t"

    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQ"
    geometry = b"I%d\n" % offset + numbers(shape) + numbers(strides)
    return b"}Vweight\nctorch._utils\n_rebuild_tensor_v2\n(" + storage + geometry + b"I00\nNtRs."


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [(0, (5,), (1,)), (2, (3,), (1,)), (-1, (2,), (1,)), (3, (2,), (-1,)), (0, (2, 2), (3, 2)), (0, (2,), ())],
)
def test_no_tensor_reaches_beyond_its_storage(tmp_path, offset, shape, strides):
    path = pickled_archive(tmp_path / "crafted.pt", crafted(offset, shape, strides))
    with pytest.raises(UserError, match=r"crafted\.pt: not a complete PyTorch file"):
        read_archive(path)
    fine = read_archive(pickled_archive(path, crafted(0, (2, 2), (2, 1))))
    assert fine["weight"].shape == (2, 2)
    with pytest.raises(UserError, match=r"crafted\.pt: tensor weight cannot be read"):
        whole(fine["weight"])  # there is no data/0


@pytest.mark.parametrize("layout", ["zip", "legacy"])
def test_truncated_files(tmp_path, layout):
    path = tmp_path / "cut.pt"
    torch.save({"weight": torch.ones(5000)}, path, _use_new_zipfile_serialization=layout == "zip")
    content = path.read_bytes()
    for length in (0, 3, 40, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match=r"cut\.pt: ") as caught:
            whole(read_archive(path)["weight"])
        assert "\n" not in str(caught.value)


def test_a_damaged_storage_is_named(tmp_path):
    path = tmp_path / "damaged.pt"
    torch.save({"weight": torch.full((5000,), 3.0)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"damaged\.pt: tensor weight cannot be read"):
        whole(read_archive(path)["weight"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"hello"), "not a PyTorch file"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not a PyTorch file"),
        (lambda path: pickled_archive(path, b"", "readme.txt"), "no data.pkl"),
        (lambda path: pickled_archive(path, b"junk"), "not a complete PyTorch file"),
        (lambda path: pickled_archive(path, pickle.dumps({"a": 1})), "contains no tensors"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: None, "cannot be read"),
    ],
)
def test_foreign_files(tmp_path, make, message):
    path = tmp_path / "foreign.pt"
    make(path)
    with pytest.raises(UserError, match=rf"foreign\.pt: .*{message}"):
        read_archive(path)

"""What tests of the commands of UniCrossAdapter share."""

import numpy as np
import pytest
from PIL import Image

from common.phantoms.phantom import make_phantom
from tests.unicross_jax.runs import unicross


@pytest.fixture
def images(tmp_path) -> list[str]:
    """Two phantom studies of two images each, in file formats that users have."""
    files = []
    for number in (1, 2):
        phantom = make_phantom(9, number, 48)
        frontal, lateral = tmp_path / f"s{number}_a.png", tmp_path / f"s{number}_b.jpg"
        Image.fromarray(phantom.frontal[:, 4:-4].astype(np.uint16) * 100).save(frontal)  # portrait, 16 bits
        Image.fromarray(phantom.lateral).convert("RGB").save(lateral)
        files += [str(frontal), str(lateral)]
    return files


@pytest.fixture
def refused(capsys):
    """Run the command; it must end with exit code 2 and one line of error, which is returned.

    Lines that name the data and the devices may come before it, where the error arises during the work.
    """

    def check(words: list[str]) -> str:
        capsys.readouterr()
        code = unicross(words)
        *before, error = capsys.readouterr().err.splitlines(keepends=True)
        assert code == 2, error
        assert error.startswith("error: "), error
        assert all(line.startswith(("data: ", "using ")) for line in before), before
        return error

    return check

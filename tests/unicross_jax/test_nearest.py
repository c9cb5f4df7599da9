"""The nearest training study is that of a search one by one; embeddings are made once, and only for what is new."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.data.splits import Split, phantom_split
from common.errors import UserError
from common.models.clip import ModifiedResNet, normalise
from unicross_jax import nearest
from unicross_jax.data import evaluation_crop
from unicross_jax.nearest import nearest_reports
from unicross_jax.trained import Trained, load_trained


@pytest.fixture(scope="module")
def trained() -> Trained:
    return load_trained(Path("unicross_jax/assets/demo").absolute())


@pytest.fixture(scope="module")
def studies(trained) -> tuple[Split, Split]:
    """Eleven training studies, the last with the images of the third, and four others."""
    config, side = trained.config.data, trained.task.model.clip.image_size
    train, held_out = (phantom_split(config, side, name, count) for name, count in (("train", 10), ("test", 4)))
    last = dataclasses.replace(train.studies[2], id="again", report="the same images")
    return Split([*train.studies, last], [*train.images, train.images[2]]), held_out


@pytest.fixture
def small_blocks(monkeypatch) -> None:
    """Blocks of four studies and calls of three images a device, so that neither ends with a study or a split."""
    monkeypatch.setattr(nearest, "BLOCK", 4)
    monkeypatch.setattr(nearest, "AT_ONCE", 3)


def embedding(trained: Trained, views) -> np.ndarray:
    """Of one study, an image at a time."""
    clip, weights = trained.task.model.clip, trained.task.frozen["clip"]["visual"]
    crop, whole = evaluation_crop(trained.config.data, clip.image_size), np.zeros(clip.embed_dim)
    apply = jax.jit(lambda image: ModifiedResNet(clip).apply({"params": weights}, normalise(image)))
    for view in views:
        own = np.asarray(apply(jnp.asarray(crop(view))[None]), np.float64)[0]
        whole += own / np.linalg.norm(own)
    return whole / np.linalg.norm(whole)


def scaled(trained: Trained, factor: float) -> Trained:
    """With every frozen weight times `factor`."""
    frozen = jax.tree.map(lambda leaf: leaf * factor, trained.task.frozen)
    return trained._replace(task=trained.task._replace(frozen=frozen))


def written(directory: Path) -> dict[str, tuple[bytes, int]]:
    return {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in directory.iterdir()}


@pytest.mark.usefixtures("small_blocks")
def test_nearest_study_is_that_of_a_search_one_by_one(trained, studies, tmp_path) -> None:
    train, held_out = studies
    asked = Split([*held_out.studies, train.studies[10]], [*held_out.images, train.images[10]])
    known = np.stack([embedding(trained, views) for views in train.images])
    cosines = np.stack([known @ embedding(trained, views) for views in asked.images])
    expected = [train.studies[index].report for index in cosines.round(6).argmax(1)]
    assert nearest_reports(trained, train, asked, tmp_path) == expected
    assert len(set(expected)) > 2
    assert expected[-1] == train.studies[2].report  # the first of equals, though they are in different blocks
    rows = np.concatenate([np.load(file) for file in tmp_path.iterdir()])
    closest = (rows @ known.T).max(1)  # files have no order of their own
    np.testing.assert_allclose(closest, 1, atol=1e-5)
    assert rows.shape == known.shape


@pytest.mark.usefixtures("small_blocks")
def test_embeddings_are_made_once_and_only_for_what_is_new(trained, studies, tmp_path) -> None:
    train, held_out = studies
    found = nearest_reports(trained, train, held_out, tmp_path)
    before = written(tmp_path)
    assert len(before) == 3
    assert nearest_reports(trained, train, held_out, tmp_path) == found
    assert written(tmp_path) == before
    lost, damaged, whole = sorted(before)
    (tmp_path / lost).unlink()
    (tmp_path / damaged).write_bytes(before[damaged][0][:100])
    assert nearest_reports(trained, train, held_out, tmp_path) == found
    after = written(tmp_path)
    assert {name: content for name, (content, _) in after.items()} == {name: own for name, (own, _) in before.items()}
    assert after[whole] == before[whole]
    other = Split(train.studies, [*train.images[:-1], train.images[0]])
    nearest_reports(trained, other, held_out, tmp_path)
    assert len(written(tmp_path).keys() - before.keys()) == 1  # of the block whose images changed
    nearest_reports(scaled(trained, 0.5), train, held_out, tmp_path)
    assert len(written(tmp_path)) == 3 + 1 + 3


@pytest.mark.usefixtures("small_blocks")
def test_what_is_kept_is_what_is_compared(trained, studies, tmp_path) -> None:
    train, held_out = studies
    nearest_reports(trained, train, held_out, tmp_path)
    for file in tmp_path.iterdir():
        np.save(file, np.zeros_like(np.load(file)))
    assert nearest_reports(trained, train, held_out, tmp_path) == [train.studies[0].report] * 4


def test_embedding_that_is_not_finite_names_its_study(trained, studies, tmp_path) -> None:
    train, held_out = studies
    with pytest.raises(UserError, match=f"{held_out.studies[0].id}.*not finite"):
        nearest_reports(scaled(trained, np.nan), train, held_out, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_directory_that_cannot_be_written_is_one_line(trained, studies, tmp_path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        nearest_reports(trained, *studies, tmp_path / "x")

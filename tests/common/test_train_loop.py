"""The loop around a toy loss: non-finite updates, best and latest checkpoints, what a second start does."""

import json
import threading
from collections.abc import Callable, Collection

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from common.errors import UserError
from common.training.checkpoint import open_checkpoints, restore_latest, restore_trainable
from common.training.evaluation import LOSS, Best, Evaluation
from common.training.logs import read_metrics
from common.training.loop import MAX_SKIPPED_IN_A_ROW, train
from common.training.optim import with_average
from common.training.parallel import compile_step, device_put_tree, make_device_layout
from common.training.step import init_state, make_train_step
from common.training.step_clock import StepClock
from common.types import LossSum, TextBatch

NOTE = {"base": {"name": "toy", "sha256": "0" * 64}}
TX = optax.sgd(0.1)


class Counted:
    """Batches whose number is in their weights; NaN on the steps of `bad`. `before` is what to call before a step."""

    def __init__(self, bad: Collection[int] = ()):
        self.bad, self.position = bad, 0
        self.before: dict[int, Callable[[], object]] = {}

    def __next__(self) -> TextBatch:
        self.position += 1
        self.before.pop(self.position, int)()
        whole = np.ones((2, 3), np.int32)
        weight = np.nan if self.position in self.bad else self.position
        return TextBatch(whole, whole, np.full((2, 3), weight, np.float32), whole, whole)

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.position}

    def set_state(self, state: dict[str, int]) -> None:
        self.position = state["next_index"]


def loss(trainable, frozen, batch, rng):
    return LossSum((trainable["w"] * batch.weights.mean()).sum(), jnp.float32(1)), {}


def run(
    run_dir,
    bad: Collection[int] = (),
    total: int = 6,
    validation=lambda state: float(state.step),
    batches=None,
    checked=None,
    evaluations=(),
    wrap=None,
    tx=TX,
    **more,
):
    """Train w by w -= 0.1 * (number of the batch) from 0, checkpoint and validation after each second step."""

    def measure(state, check):
        return {LOSS: validation(state)}

    layout = make_device_layout("jit")
    checkpoints = open_checkpoints(run_dir, NOTE)
    try:
        return train(
            device_put_tree(init_state({"w": jnp.zeros(3)}, tx), layout),
            {},
            batches or Counted(bad),
            (wrap or (lambda step: step))(compile_step(lambda axis: make_train_step(loss, tx, 1, axis), layout)),
            run_dir=run_dir,
            total_steps=total,
            rng=device_put_tree(jax.random.key(0), layout),
            layout=layout,
            checkpoints=checkpoints,
            schedule=optax.constant_schedule(0.1),
            evaluations=evaluations or [Evaluation(2, checked or measure, (LOSS,))],
            checkpoint_every=2,
            tensorboard=False,
            **more,
        )
    finally:
        checkpoints.close()


def read(run_dir, restore, like):
    checkpoints = open_checkpoints(run_dir, NOTE)
    try:
        return restore(checkpoints, like)
    finally:
        checkpoints.close()


def test_updates_that_are_not_finite_are_skipped_and_counted(tmp_path):
    state = run(tmp_path, bad={2, 3, 5})
    np.testing.assert_allclose(state.trainable["w"], -0.1 * (1 + 4 + 6), rtol=1e-6)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["skipped"] for row in rows] == [0, 1, 2, 2, 3, 3]
    assert [row["skipped_in_a_row"] for row in rows] == [0, 1, 2, 0, 1, 0]
    assert [row["loss"] is None for row in rows] == [False, True, True, False, True, False]


def test_the_average_of_the_weights_is_evaluated_and_exported_and_the_weights_themselves_go_on(tmp_path):
    tx, seen = with_average(TX, 0.6), {}

    def look(state):
        seen[int(state.step)] = float(state.trainable["w"][0])
        return seen[int(state.step)]

    def wanted(bad):
        weight, average, found, count = 0.0, 0.0, {}, 0
        for step in range(1, 7):
            if step not in bad:
                weight -= 0.1 * step
                decay = min(0.6, (1 + count) / (10 + count))
                average, count = decay * average + (1 - decay) * weight, count + 1
            found[step] = weight, average
        return found

    whole = run(tmp_path / "whole", bad={4}, tx=tx, validation=look)
    expected = wanted({4})
    assert seen == pytest.approx({step: expected[step][1] for step in (2, 4, 6)}, rel=1e-5)
    np.testing.assert_allclose(whole.trainable["w"], expected[6][0], rtol=1e-5)
    step, best = read(tmp_path / "whole", restore_trainable, whole.trainable)
    assert step == 6
    np.testing.assert_allclose(best["w"], expected[6][1], rtol=1e-5)
    assert abs(expected[6][0] - expected[6][1]) > 0.1
    run(tmp_path / "cut", bad={4}, tx=tx, total=4, validation=look)
    run(tmp_path / "cut", bad={4}, tx=tx, validation=look)
    whole_log, cut_log = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "cut"))
    assert whole_log[4:] == cut_log[4:]
    assert with_average(TX, 0.0) is TX


def test_an_update_that_is_not_finite_is_skipped_though_its_gradient_is():
    def half(trainable, frozen, batch, rng):
        return LossSum(trainable["w"][0], jnp.float32(1)), {}

    tx = optax.adam(0.1, eps=0.0)  # 0 / 0 where the gradient is 0
    step = jax.jit(make_train_step(half, tx))
    state, metrics = step(init_state({"w": jnp.ones(3)}, tx), {}, next(Counted()), jax.random.key(0))
    assert np.isfinite(metrics["grad_norm"])
    assert int(state.skipped) == int(state.skipped_in_a_row) == 1
    np.testing.assert_array_equal(state.trainable["w"], np.ones(3))


def test_too_many_in_a_row_are_fatal_and_leave_good_weights(tmp_path):
    with pytest.raises(UserError, match=rf"{MAX_SKIPPED_IN_A_ROW} updates in a row .* step 13"):
        run(tmp_path, bad=range(4, 50), total=40)
    state, _ = read(
        tmp_path, restore_latest, device_put_tree(init_state({"w": jnp.zeros(3)}, TX), make_device_layout("jit"))
    )
    assert int(state.step) == 12
    np.testing.assert_allclose(state.trainable["w"], -0.1 * (1 + 2 + 3), rtol=1e-6)


def test_nine_in_a_row_are_not_fatal(tmp_path):
    state = run(tmp_path, bad=range(2, 2 + MAX_SKIPPED_IN_A_ROW - 1), total=12)
    assert int(state.skipped) == MAX_SKIPPED_IN_A_ROW - 1


def test_best_and_latest_are_kept_apart(tmp_path):
    state = run(tmp_path, validation=lambda state: abs(float(state.step) - 3.9))
    step, best = read(tmp_path, restore_trainable, state.trainable)
    assert step == 4
    np.testing.assert_allclose(best["w"], -0.1 * (1 + 2 + 3 + 4), rtol=1e-6)
    latest, position = read(tmp_path, restore_latest, state)
    assert int(latest.step) == position["next_index"] == 6
    np.testing.assert_array_equal(latest.trainable["w"], state.trainable["w"])


def test_a_validation_that_is_not_finite_is_no_best_and_is_said(tmp_path, capsys):
    values = {2: 0.5, 4: float("nan"), 6: float("-inf")}
    state = run(tmp_path, bad={5}, validation=lambda state: values[int(state.step)])
    said = capsys.readouterr().err
    assert said.count("val/loss is not finite") == 2
    assert "warning: step 4: val/loss is not finite" in said
    assert "warning: 1 of 6 updates were not finite and were skipped" in said
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["val/loss"] for row in rows if "val/loss" in row] == [0.5, None, None]
    assert read(tmp_path, restore_trainable, state.trainable)[0] == 2
    assert "no evaluation chose" not in capsys.readouterr().err


def test_where_no_validation_is_finite_the_latest_is_taken_and_it_is_said(tmp_path, capsys):
    state = run(tmp_path, validation=lambda state: float("nan"))
    assert read(tmp_path, restore_trainable, state.trainable)[0] == 6
    assert "no evaluation chose a best checkpoint; using step 6" in capsys.readouterr().err


def test_a_second_start_continues_and_a_third_does_nothing(tmp_path):
    whole = run(tmp_path / "whole")
    with pytest.raises(RuntimeError, match="cut"):
        run(tmp_path / "cut", validation=cut_at(4))
    state = run(tmp_path / "cut")
    np.testing.assert_array_equal(state.trainable["w"], whole.trainable["w"])
    log = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == log
    run(tmp_path / "cut", validation=cut_at(1))
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == log


def cut_at(step):
    """A validation that fails from a step on."""

    def validation(state) -> float:
        if int(state.step) >= step:
            raise RuntimeError("cut")
        return float(state.step)

    return validation


class Watch:
    """A clock that tests set forward."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_the_clock_belongs_to_the_step(tmp_path):
    """Batches take 2 s, steps on the host their number, validations 1,000 s and checkpoints 100 s."""
    watch, batches = Watch(), Counted()

    def spend(seconds: float) -> None:
        watch.time += seconds

    def timed_step(step):
        def run(state, frozen, batch, rng):
            state, metrics = jax.block_until_ready(step(state, frozen, batch, rng))
            number = int(state.step)
            spend(number)
            return state, {**metrics, "seconds/host": np.float64(number)}

        return run

    def saved(data):
        spend(100)
        return data

    batches.before = {step: lambda: spend(2) for step in range(1, 7)}
    state_of = batches.get_state
    batches.get_state = lambda: saved(state_of())
    run(tmp_path, batches=batches, wrap=timed_step, now=watch, validation=lambda state: spend(1000) or 1.0)
    rows = [json.loads(line) for line in (tmp_path / "timings.jsonl").read_text().splitlines()]
    assert [row["step_seconds"] for row in rows] == [step + 2 for step in range(1, 7)]
    for row in rows:
        assert row["tokens_per_second"] == pytest.approx(6 / row["step_seconds"])
        assert sum(value for name, value in row.items() if name.startswith("seconds/")) <= row["step_seconds"]
    assert ["compile_seconds" in row for row in rows] == [True, *[False] * 5]


class Result:
    """What a step that is not computed yet returns."""

    def __init__(self):
        self.done = threading.Event()

    def is_ready(self):
        return self.done.is_set()

    def block_until_ready(self):
        self.done.wait(10)
        return self


def test_steps_in_flight_end_when_their_results_are_there():
    """Of two steps that are dispatched one after the other, each has its own time, whenever it is asked for."""
    watch = Watch()
    clock, results = StepClock(watch), (Result(), Result())
    ended = [clock.dispatched(result) for result in results]
    timings = []
    for result, seconds in zip(results, (5.0, 7.0), strict=True):
        watch.time += seconds
        result.done.set()
        timings.append(ended[len(timings)]()["step_seconds"])
    assert timings == [5.0, 7.0]


def test_steps_whose_ends_are_seen_at_once_share_their_time():
    """A busy machine wakes the thread that looks only after the next step has ended, too."""
    watch = Watch()
    clock, results = StepClock(watch), (Result(), Result())
    ended = [clock.dispatched(result) for result in results]
    watch.time += 12.0
    for result in reversed(results):
        result.done.set()
    assert [timed()["step_seconds"] for timed in ended] == [6.0, 6.0]


def test_compiling_is_told_of_the_step_that_does_it():
    clock = StepClock()
    step = jax.jit(lambda x: (x @ x).sum())
    with clock.listening():
        first = clock.dispatched(step(jnp.ones((3, 3))))()
        again = clock.dispatched(step(jnp.ones((3, 3))))()
        other = clock.dispatched(step(jnp.ones((5, 5))))()
    assert 0 < first["compile_seconds"] <= first["step_seconds"]
    assert "compile_seconds" not in again
    assert 0 < other["compile_seconds"] <= other["step_seconds"]


def scored(values, every=2, name="val/F1"):
    """An evaluation whose score of each step is given; unknown names are not declared."""
    return Evaluation(every, lambda state, check: {name: values[int(state.step)]}, (name,))


def test_the_best_checkpoint_follows_any_measurement_up_or_down(tmp_path):
    values = {1: 0.3, 2: 0.1, 3: 0.9, 4: 0.5, 5: 0.8, 6: 0.2}
    losses = Evaluation(2, lambda state, check: {LOSS: float(state.step)}, (LOSS,))
    for highest, expected in ((True, 3), (False, 2)):
        folder = tmp_path / str(highest)
        state = run(folder, evaluations=[losses, scored(values, every=1)], best=Best("val/F1", highest))
        assert read(folder, restore_trainable, state.trainable)[0] == expected
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["val/F1"] for row in rows] == [*values.values()]
        assert [row["step"] for row in rows if LOSS in row] == [2, 4, 6]


def test_what_nothing_measures_cannot_choose_the_best(tmp_path):
    with pytest.raises(UserError, match="best_by: val/BLEU is not measured while training; expected val/loss"):
        run(tmp_path / "known", best=Best("val/BLEU"))
    unknown = [Evaluation(2, lambda state, check: {"val/F1": 1.0})]
    with pytest.raises(UserError, match="best_by: val/BLEU is not measured while training; expected val/F1"):
        run(tmp_path / "unknown", best=Best("val/BLEU"), evaluations=unknown)


def test_training_ends_where_nothing_better_comes_and_a_second_start_does_nothing(tmp_path, capsys):
    values = {2: 3.0, 4: 1.0, 6: 2.0, 8: 1.5, 10: 0.5, 12: 0.1}
    patient = {"total": 12, "best": Best("val/F1", patience=2)}
    state = run(tmp_path / "whole", evaluations=[scored(values)], **patient)
    assert int(state.step) == 8
    assert "ended after step 8: no better val/F1 in 2 evaluations" in capsys.readouterr().err
    assert read(tmp_path / "whole", restore_trainable, state.trainable)[0] == 4
    log = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    assert b"weights_sha256" in log.splitlines()[-1]
    run(tmp_path / "whole", evaluations=[scored({})], **patient)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == log
    with pytest.raises(KeyError):
        run(tmp_path / "cut", evaluations=[scored({2: 3.0, 4: 1.0, 6: 2.0})], **patient)
    run(tmp_path / "cut", evaluations=[scored(values)], **patient)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == log


def test_steps_are_traced_where_that_is_asked_for(tmp_path):
    run(tmp_path / "traced", profile=1)
    assert [*(tmp_path / "traced" / "profile").rglob("perfetto_trace.json.gz")]
    run(tmp_path / "short", total=2, profile=5)  # ends before the last of them
    run(tmp_path / "none")
    assert not (tmp_path / "none" / "profile").exists()

"""Reinforcement learning end to end on a tiny model: a toy reward is learnt, and credit goes to the right tokens."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from common.clinical.report_labeler import Labelled
from common.data.packing import GlobalBatch
from common.data.pipeline import make_iterator
from common.data.tokenizers import WordTokenizer
from common.errors import UserError
from common.generation.loop import Generated
from common.generation.ngrams import build_table
from common.generation.sampling import Sampling
from common.generation.settings import DecodeSettings
from common.metrics.clinical import FINDINGS
from common.models.decoding import Prompts
from common.training.checkpoint import open_checkpoints
from common.training.evaluation import LOSS, Evaluation
from common.training.loop import train
from common.training.optim import OptimConfig, make_optimizer, make_schedule
from common.training.parallel import MeshConfig, device_put_tree, make_device_layout, place_batch
from common.training.run import this_process
from common.training.step import init_state
from deer_jax.ditpo import ADVANTAGES, TOKEN_WEIGHTS
from deer_jax.measures import reward_measures, rollout_measures, weight_measures
from deer_jax.objective import Objective
from deer_jax.policy import text_policy
from deer_jax.rewarding import make_judge, score_function
from deer_jax.rl import StudyBatch, has_variance, make_rl_step, plan_studies
from deer_jax.token_weights import Rollout, uniform_scores
from tests import tiny
from tests.overflow import LOUD, overflowing

WORDS = WordTokenizer(tuple(f"word{number}" for number in range(tiny.CONFIG.vocab_size - 4)))
SETTINGS = DecodeSettings(
    max_new_tokens=5, sampling=Sampling(temperature=1.0), stop_ids=WORDS.stop_ids, forbidden_ids=(0, 1, 3)
)
POLICY = text_policy(tiny.CONFIG, SETTINGS, chunk=8)
STUDIES, GROUP = 8, 6
REFERENCES = [f"word{number} word{number}" for number in range(STUDIES)]
EACH = [f"reward/{name}" for name in FINDINGS]


class WordLabeler:
    """Finding k is positive where "wordk" stands, so that the reference of study k states it alone."""

    labels = FINDINGS

    def label(self, texts, ids=None) -> Labelled:
        words = [text.split() for text in texts]
        return Labelled(np.array([[f"word{k}" in own for k in range(len(FINDINGS))] for own in words], np.int8))


def to_batch(plan) -> StudyBatch:
    def of(studies, spares=()):
        tokens = np.stack([studies + 10, studies + 20], axis=1).astype(np.int32)
        return StudyBatch(Prompts(tokens, np.ones(tokens.shape, bool)), studies, spares)

    first, *spares = np.array(plan.rows, np.int32).T
    return of(first, tuple(of(studies) for studies in spares))


def wanted_words(texts, references):
    """The share of words from the first half of the vocabulary."""
    early = {f"word{number}" for number in range(46)}
    return [sum(word in early for word in text.split()) / max(len(text.split()), 1) for text in texts]


def run(
    run_dir, steps: int, layout, *, scores="tfidf", reward=wanted_words, objective=None, updates=1, rate=3e-3,
    policy=POLICY, table=None, labeler=None,
):  # fmt: skip
    optim = OptimConfig(learning_rate=rate, schedule="constant", warmup_ratio=0.0)
    tx = make_optimizer(optim, steps)
    judge = make_judge(REFERENCES, labeler, score_function(scores, None, WORDS.stop_ids), 1.0, reward=reward)
    objective = objective or Objective()
    trainable = device_put_tree(tiny.params(), layout)
    step = make_rl_step(
        policy, objective, tx, judge, WORDS, layout, group=GROUP, updates=updates, table=table,
        reference=device_put_tree(tiny.params(), layout) if objective.kl else None,
    )  # fmt: skip
    rows = []

    def watched(state, frozen, batch, rng):
        state, metrics = step(state, frozen, batch, rng)
        rows.append({name: float(value) for name, value in metrics.items()})
        return state, metrics

    checkpoints = open_checkpoints(run_dir, {"base": {"name": "tiny", "sha256": "0"}})
    state = train(
        device_put_tree(init_state(trainable, tx), layout),
        {},
        make_iterator(plan_studies(STUDIES, 8, steps, 0, objective.form.refills), to_batch, **this_process()),
        watched,
        run_dir=run_dir,
        total_steps=steps,
        rng=device_put_tree(jax.random.key(0), layout),
        layout=layout,
        checkpoints=checkpoints,
        schedule=make_schedule(optim, steps),
        evaluations=[Evaluation(steps, lambda state, check: {LOSS: 0.0}, (LOSS,))],
        checkpoint_every=2,
        tensorboard=False,
    )
    checkpoints.close()
    return state, rows


def test_a_toy_reward_is_learnt(tmp_path):
    _, rows = run(tmp_path, 25, make_device_layout("jit"))
    assert abs(rows[0]["reward"] - 0.5) < 0.15  # 48 rollouts of random words
    assert np.mean([row["reward"] for row in rows[-3:]]) > 0.7
    assert {f"seconds/{name}" for name in ("rollout", "labels", "token_weights", "update", "host")} <= {*rows[0]}
    assert not {*EACH} & {*rows[0]}  # without a labeler
    assert max(row["log_prob_gap"] for row in rows) < 1e-4  # sampling and scoring agree all along
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["tokens"] for row in logged] == [round(row["new_tokens"] * 8 * GROUP) for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Two steps on one device: the state, and the metrics."""
    return run(tmp_path_factory.mktemp("alone"), 2, make_device_layout("jit"), labeler=WordLabeler())


def same_distributions(one, other):
    """Counts are the same whatever adds them up; mean rewards but for rounding."""
    counts = [name for name in one if name.startswith(("advantage_below_", "token_weight_below_", "stated/"))]
    assert len(counts) == len(ADVANTAGES) + len(TOKEN_WEIGHTS) + len(FINDINGS)
    assert {name: one[name] for name in counts} == {name: other[name] for name in counts}
    assert [one[name] for name in EACH] == pytest.approx([other[name] for name in EACH], rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("mode", ["pmap", "mesh"])
def test_devices_change_neither_rollouts_nor_updates(alone, tmp_path, mode):
    one_device, first = alone
    layout = make_device_layout(mode, MeshConfig(data=4, fsdp=2))
    several, second = run(tmp_path / mode, 2, layout, labeler=WordLabeler())
    for one, other in zip(first, second, strict=True):
        for name in ("reward", "loss", "new_tokens", "tokens", "grad_norm", "unique_rewards"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)
        same_distributions(one, other)
    for one, other in zip(jax.tree.leaves(one_device.trainable), jax.tree.leaves(several.trainable), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)  # Adam turns rounding into up to a rate of 3e-3


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_drafts_change_neither_rollouts_nor_updates(alone, tmp_path, mode):
    one_device, first = alone
    random = np.random.default_rng(0)
    table = build_table(random.integers(4, tiny.CONFIG.vocab_size, (400, 6)).tolist())
    policy = text_policy(tiny.CONFIG, dataclasses.replace(SETTINGS, drafts=3), chunk=8)
    drafted, second = run(tmp_path / mode, 2, make_device_layout(mode), policy=policy, table=table)
    for one, other in zip(first, second, strict=True):
        for name in ("reward", "loss", "new_tokens", "tokens", "grad_norm", "unique_rewards"):
            assert one[name] == pytest.approx(other[name], rel=1e-4, abs=1e-6)
    for one, other in zip(jax.tree.leaves(one_device.trainable), jax.tree.leaves(drafted.trainable), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)  # Adam turns rounding into up to a rate of 3e-3


def test_the_rewards_of_each_finding_are_those_of_the_studies_that_have_it(tmp_path):
    judged = []

    def watched(texts, references):
        values = [np.nan if number % 5 == 0 else len(text) / 9 for number, text in enumerate(texts)]
        judged.append((references, values))
        return values

    _, rows = run(tmp_path, 2, make_device_layout("jit"), reward=watched, labeler=WordLabeler())
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(judged) == 2
    for row, written, (references, values) in zip(rows, logged, judged, strict=True):
        finite = [value for value in values if np.isfinite(value)]
        assert row["reward"] == pytest.approx(np.mean(finite))
        for number, name in enumerate(FINDINGS):
            own = [value for value, of in zip(values, references, strict=True) if f"word{number}" in of.split()]
            own = [value for value in own if np.isfinite(value)]
            assert row[f"stated/{name}"] == pytest.approx(len(own) / (STUDIES * GROUP))
            assert bool(own) == (number < STUDIES)
            if own:
                assert row[f"reward/{name}"] == pytest.approx(np.mean(own))
            else:  # not a reward of 0
                assert written[f"reward/{name}"] is None


def test_distributions_over_no_token_are_unknown(tmp_path):
    def endless(*args, **more):
        generated = POLICY.sample(*args, **more)
        return generated.replace(stopped=jnp.zeros_like(generated.stopped))

    policy, objective = POLICY._replace(sample=endless), Objective(mask_unfinished=True)
    _, rows = run(tmp_path, 1, make_device_layout("jit"), policy=policy, objective=objective)
    assert rows[0]["tokens"] == 0
    assert all(np.isnan(value) for name, value in rows[0].items() if "_below_" in name)


def test_an_interrupted_run_continues_bit_for_bit(tmp_path):
    shared = {"labeler": WordLabeler()}
    run(tmp_path / "whole", 5, make_device_layout("jit"), **shared)

    class Killed(Exception):
        pass

    def killing(texts, references):
        killing.calls += 1
        if killing.calls == 4:
            raise Killed
        return wanted_words(texts, references)

    killing.calls = 0
    with pytest.raises(Killed):
        run(tmp_path / "cut", 5, make_device_layout("jit"), reward=killing, **shared)
    run(tmp_path / "cut", 5, make_device_layout("jit"), **shared)
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut"))
    assert b"weights_sha256" in whole
    assert b'"reward/No Finding": null' in whole
    assert b'"token_weight_below_1.01"' in whole
    assert whole == cut


def test_several_updates_on_the_same_rollouts_move_away_from_the_policy_that_sampled(tmp_path):
    state, rows = run(tmp_path, 2, make_device_layout("jit"), updates=3, objective=Objective(kl=0.1))
    assert int(state.step) == 2
    assert rows[0]["log_prob_gap"] > 1e-3
    assert rows[0]["kl"] > 0


def silent_for_the_first(texts, references):
    """Equal rewards of the first five studies."""
    known = {*REFERENCES[5:]}
    return [value * (own in known) for value, own in zip(wanted_words(texts, references), references, strict=True)]


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_groups_with_equal_rewards_are_drawn_again_of_other_studies(tmp_path, mode):
    layout, refills = make_device_layout(mode), 2
    _, rows = run(
        tmp_path, 2, layout, reward=silent_for_the_first, objective=Objective(refills=refills), rate=0.0,
        labeler=WordLabeler(),
    )  # fmt: skip
    for step, batch in zip(rows, plan_studies(STUDIES, 8, 2, 0, refills).batches, strict=True):
        assert all(len(row) == 1 + refills for row in batch.rows)
        told = np.array(batch.rows) >= 5
        assert step["refilled"] == pytest.approx((~told[:, 0]).mean())
        assert step["zero_variance_groups"] == pytest.approx((~told.any(1)).mean())
        assert step["zero_variance_groups"] < (~told[:, 0]).mean()
        learnt = [next((study for study in row if study >= 5), row[-1]) for row in batch.rows]
        stated = [step[f"stated/{name}"] for name in FINDINGS]
        assert stated == pytest.approx([learnt.count(number) / len(learnt) for number in range(len(FINDINGS))])
        assert step["log_prob_gap"] < 1e-4  # so that tokens and prompts are of the same study


def test_groups_have_variance_where_finite_rewards_differ():
    rewards = np.array([[1, 1, 1], [1, 2, 1], [np.nan, 1, 1], [np.nan] * 3, [np.nan, 1, 2]])
    assert has_variance(rewards).tolist() == [False, True, False, False, True]


def test_an_entropy_bonus_keeps_samples_diverse(tmp_path):
    shared = {"reward": lambda texts, _: [float(len(text)) for text in texts], "rate": 1e-2}
    plain, bonus = (
        run(tmp_path / name, 12, make_device_layout("jit"), objective=Objective(entropy=weight), **shared)[1]
        for name, weight in (("plain", 0.0), ("bonus", 2.0))
    )
    assert bonus[-1]["entropy"] > plain[-1]["entropy"] + 0.2
    # What samples estimate and what the distributions have agree before the first update.
    assert plain[0]["entropy"] == pytest.approx(bonus[0]["entropy"], rel=0.05)


def test_what_training_computes_otherwise_than_sampling_is_corrected_and_unfinished_reports_teach_nothing(tmp_path):
    objective = Objective(importance_cap=2.0, mask_unfinished=True)
    _, rows = run(tmp_path, 1, make_device_layout("pmap"), objective=objective)
    assert rows[0]["importance"] == pytest.approx(1, abs=1e-4)
    assert rows[0]["importance_capped"] == 0
    assert rows[0]["log_prob_gap"] == 0
    assert rows[0]["unfinished"] > 0.5
    assert rows[0]["tokens"] < 0.5 * rows[0]["new_tokens"] * 8 * GROUP


def test_weights_are_told_by_their_heaviest_tenth():
    heavy = np.ones(20)
    heavy[:2] = 9
    measured = weight_measures([[heavy, np.ones(10)], [np.zeros(0), np.zeros(3)]])
    np.testing.assert_allclose(measured["token_weight"], [[1.8, 1], [1, 0]])
    np.testing.assert_allclose(measured["token_weight_largest"], [[9, 1], [0, 0]])
    np.testing.assert_allclose(measured["token_weight_heaviest_tenth"], [[0.5, 0.1], [0, 0]])


def test_only_rewarded_tokens_are_pushed_when_their_weight_says_so(tmp_path):
    """With a weight of 0 on all words but "word0", only its probability is moved by the update."""
    from deer_jax.ditpo import PolicyParams, Rollouts, make_loss

    tokens = jnp.array([[[4, 9, 2], [9, 9, 2]]])  # word0 word5; word5 word5
    weights = jnp.where(tokens == 4, 1.0, 0.0)
    batch = Rollouts(
        prompts=Prompts(jnp.array([[10, 20]]), jnp.ones((1, 2), bool)),
        tokens=tokens,
        mask=jnp.ones(tokens.shape, bool),
        old_log_probs=jnp.full(tokens.shape, -4.5),
        advantages=jnp.array([[1.0, -1.0]]),
        token_weights=weights,
    )
    params, loss = tiny.params(), make_loss(POLICY, Objective())
    gradient = jax.jit(jax.grad(lambda tree: loss(tree, {}, batch, jax.random.key(0))[0].total))(params)
    moved = jax.tree.map(lambda leaf, change: leaf - 0.5 * change, params, gradient)
    score = jax.jit(POLICY.token_logprobs)
    before, after = (score(PolicyParams(tree, {}), batch.prompts, tokens, batch.mask) for tree in (params, moved))
    change = np.asarray(after - before)[0]
    assert change[0, 0] > 0.05
    assert change[0, 0] > 5 * np.abs(change[1]).max()


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([[1, 1, 1, 1]], {"reward": 1, "zero_variance_groups": 1, "unique_rewards": 1, "reward_deviation": 0}),
        ([[0, 1, 0, 1]], {"reward": 0.5, "zero_variance_groups": 0, "unique_rewards": 2, "reward_deviation": 0.5}),
        ([[0, np.nan, 1, 1]], {"reward": 2 / 3, "rewards_not_finite": 0.25, "unique_rewards": 2}),
        ([[np.nan] * 4], {"rewards_not_finite": 1, "zero_variance_groups": 1, "unique_rewards": 0}),
    ],
)
def test_rewards_are_told_as_in_table_7(rewards, expected):
    measured = reward_measures(np.array(rewards, float))
    for name, value in expected.items():
        assert np.nanmean(measured[name]) == pytest.approx(value)
    np.testing.assert_array_equal(np.isnan(measured["reward"]), np.isnan(np.array(rewards, float)))


def test_endless_empty_and_undecodable_reports_are_counted():
    texts = [["edema", "", " \n"], ["a\ufffd", "\N{LUNGS}", "no"]]
    groups = [[Rollout((), text, np.zeros((0, 2), int)) for text in own] for own in texts]
    lengths, stopped = np.array([[2, 1, 2], [5, 5, 2]]), np.array([[True, True, True], [False, False, True]])
    tokens = np.zeros((2, 3, 5), int)
    finite = np.ones_like(stopped)
    measured = rollout_measures(Generated(tokens, tokens.astype(float), lengths, stopped, finite, tokens > 0), groups)
    found = {name: values.mean() for name, values in measured.items()}
    assert found == pytest.approx({"new_tokens": 17 / 6, "unfinished": 1 / 3, "empty": 1 / 3, "invalid_text": 1 / 6})


def test_a_reward_of_nan_and_empty_reports_do_no_harm(tmp_path):
    def odd(texts, references):
        return [float("nan") if number % 3 == 0 else len(text) for number, text in enumerate(texts)]

    state, rows = run(tmp_path, 2, make_device_layout("jit"), reward=odd)
    assert rows[0]["rewards_not_finite"] == pytest.approx(1 / 3, abs=0.01)
    assert rows[-1]["skipped"] == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trainable))


def test_rewards_none_of_which_is_finite_are_refused_and_a_few_are_said_once(capsys):
    rollout = Rollout((), "text", np.zeros((0, 2), int))

    def judged(*values, **options):
        judge = make_judge(
            ["a", "b"], None, uniform_scores, 0.0, reward=lambda texts, _: list(values), names=("mine:reward", "w"),
            ids=["s1", "s2"], **options,
        )  # fmt: skip
        return [judge(np.array([0, 1]), [[rollout], [rollout]], 0).rewards for _ in range(2)]

    judged(1.0, np.inf)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "mine:reward: the reward of a report of id 's2' is inf, and 1 of 2 are not finite" in said
    with pytest.raises(UserError, match=r"mine:reward: the reward of a report of id 's1' is nan, and 2 of 2"):
        judged(np.nan, np.nan)
    assert np.isnan(judged(np.nan, np.nan, learning=False)).all()
    for wrong, what in (
        ((1.0,), r"shape \(1,\) for 2 texts"),
        ((None, 1.0), "found object"),
        (("1", "2"), "found <U1"),
    ):
        with pytest.raises(UserError, match=f"mine:reward: .*{what}"):
            judged(*wrong)


def test_rollouts_of_a_policy_that_overflows_name_their_study():
    settings = dataclasses.replace(SETTINGS, forbidden_ids=(LOUD,))
    policy = text_policy(dataclasses.replace(tiny.CONFIG, dtype="float16"), settings, chunk=8)
    judge = make_judge(REFERENCES, None, uniform_scores, 1.0, reward=wanted_words)
    layout, tx = make_device_layout("jit"), make_optimizer(OptimConfig(), 1)
    step = make_rl_step(
        policy, Objective(), tx, judge, WORDS, layout, group=2, ids=[f"study-{number}" for number in range(STUDIES)]
    )  # fmt: skip
    state = device_put_tree(init_state(overflowing(tiny.params()), tx), layout)
    studies = np.array([3, LOUD - 10], np.int32)  # the second one's prompt begins with the token
    batch = to_batch(GlobalBatch(1, [[study] for study in studies], 2, 0))
    with pytest.raises(UserError, match=r"id 'study-7': the policy's logits in step 1 are not finite .* learning rate"):
        step(state, {}, place_batch(batch, layout), jax.random.key(0))

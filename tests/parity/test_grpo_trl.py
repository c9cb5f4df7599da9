"""The losses of all objectives, with and without token weights, are TRL's, and so are their gradients."""

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deer_jax.ditpo import Rollouts, ditpo_loss, group_advantages, importance
from deer_jax.objective import Objective

torch = pytest.importorskip("torch")
trainer = pytest.importorskip("trl.trainer.grpo_trainer")

B, G, T = 3, 4, 9
LOSS_TYPES = {"sequence": "grpo", "token": "bnpo", "constant": "dr_grpo"}
# TRL's loss_type of each method
METHODS = {"grpo": "grpo", "dr-grpo": "dr_grpo", "dapo": "dapo", "gspo": "grpo", "cispo": "cispo"}


def trl_loss(logp, batch: Rollouts, objective: Objective, weights, entropy=None):
    """The loss that `GRPOTrainer` computes from the log-probabilities of a batch, its gradient, and what it logs."""
    values = torch.tensor(np.asarray(logp).reshape(-1, T), requires_grad=True)
    entropies = torch.zeros_like(values) if entropy is None else torch.tensor(entropy.reshape(-1, T))
    form, chosen = objective.form, objective.normalisation != "method"
    own = MagicMock(
        _get_per_token_logps_and_entropies=lambda *args, **options: (values, entropies, None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="sequence" if form.of_sequence else "token",
        beta=objective.kl,
        epsilon_low=form.clip_low,
        epsilon_high=form.clip_high + form.weight_clipped,
        loss_type=LOSS_TYPES[form.normalisation] if chosen else METHODS[objective.method],
        max_completion_length=T,
        use_vllm=batch.importance is not None,
        vllm_importance_sampling_correction=True,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(use_bias_correction_kl=objective.kl_bias_correction, delta=None, steps_per_generation=1),
        _entropy_bonus_enabled=entropy is not None,
        entropy_coef=objective.entropy,
        use_adaptive_entropy=False,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=False, num_processes=1
        ),
        _metrics={"train": defaultdict(list)},
    )
    prompts = torch.zeros((B * G, 1), dtype=torch.long)
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": torch.zeros((B * G, T), dtype=torch.long),
        "completion_mask": torch.tensor(np.asarray(batch.mask).reshape(-1, T)).long(),
        "advantages": torch.tensor(np.asarray(batch.advantages).reshape(-1)),
        "old_per_token_logps": torch.tensor(np.asarray(batch.old_log_probs).reshape(-1, T)),
        "num_items_in_batch": torch.tensor(float(batch.mask.sum())),
    }
    if batch.importance is not None:
        inputs["importance_sampling_ratio"] = torch.tensor(np.asarray(batch.importance).reshape(-1, T))
    if weights is not None:  # advantages of tokens, as TRL takes them from subclasses
        inputs["advantages"] = inputs["advantages"][:, None] * torch.tensor(weights.reshape(-1, T))
    if batch.reference_log_probs is not None:
        inputs["ref_per_token_logps"] = torch.tensor(np.asarray(batch.reference_log_probs).reshape(-1, T))
    loss = trainer.GRPOTrainer._compute_loss(own, None, inputs)
    loss.backward()
    reported = {name: values[0] for name, values in own._metrics["train"].items()}
    return loss.item(), values.grad.numpy().reshape(B, G, T), reported


def random_rollouts(weighted: bool, kl: float = 0.0, spread: float = 0.4, **changes):
    """Log-probabilities now, rollouts, and their token weights as they were given."""
    random = np.random.default_rng(0)
    old = random.normal(-1.5, 0.7, (B, G, T)).astype(np.float32)
    logp = old + random.normal(0, spread, old.shape).astype(np.float32)
    weights = (1 + random.random(old.shape)).astype(np.float32) if weighted else None
    batch = Rollouts(
        prompts={},
        tokens=np.zeros(old.shape, np.int32),
        mask=np.arange(T) < random.integers(1, T + 1, (B, G, 1)),
        old_log_probs=old,
        advantages=random.normal(size=(B, G)).astype(np.float32),
        token_weights=np.ones_like(old) if weights is None else weights,
        reference_log_probs=old + random.normal(-0.1, 0.3, old.shape).astype(np.float32) if kl else None,
        **changes,
    )
    return logp, batch, weights


def own_loss(logp, batch: Rollouts, objective: Objective, entropy=None):
    """Our loss, the sums that it reports as means, and its gradient."""

    def mean(values):
        loss, aux = ditpo_loss(values, batch, objective, entropy)
        return loss.total / loss.weight, aux

    (value, aux), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(logp))
    return float(value), {name: float(own.total / own.weight) for name, own in aux.items()}, gradient


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kl", "corrected"), [(0.0, False), (0.04, False), (0.04, True), (2.0, True)])
@pytest.mark.parametrize("normalisation", LOSS_TYPES)
def test_loss_and_gradient_are_those_of_trl(normalisation, kl, corrected, weighted):
    logp, batch, weights = random_rollouts(weighted, kl)
    objective = Objective(
        clip_low=0.2, clip_high=0.28, kl=kl, kl_bias_correction=corrected, normalisation=normalisation
    )
    expected, wanted, reported = trl_loss(logp, batch, objective, weights)
    value, aux, gradient = own_loss(logp, batch, objective)
    assert abs(value - expected) < 1e-5
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    assert abs(aux["clipped"] - reported["clip_ratio/region_mean"]) < 1e-6
    if kl:
        assert abs(aux["kl"] - reported["kl"]) < 1e-6


@pytest.mark.parametrize("corrected", [False, True], ids=["", "importance"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_that_of_trl(method, weighted, corrected):
    # GSPO's clip range is that narrow; far ratios for CISPO's, or nothing would be clipped.
    spread = {"gspo": 1e-3, "cispo": 1.2}.get(method, 0.4)
    logp, batch, weights = random_rollouts(weighted, 0.04, spread)
    if corrected:
        sampled = batch.old_log_probs + np.random.default_rng(1).normal(0, 0.5, logp.shape).astype(np.float32)
        batch = batch.replace(importance=importance(batch.old_log_probs, sampled, 1.5))
    objective = Objective(method=method, kl=0.04, importance_cap=1.5 if corrected else 0.0)
    expected, wanted, reported = trl_loss(logp, batch, objective, weights)
    value, aux, gradient = own_loss(logp, batch, objective)
    assert abs(value - expected) < 1e-5
    assert 0.02 < aux["clipped"] < 0.9
    if method == "gspo":
        # TRL's gradient is shared by the tokens of a report, where weights of tokens would average out.
        mask = batch.mask
        shared = (np.asarray(gradient) * mask).sum(-1), (wanted * mask).sum(-1)
        if not (weighted or corrected):
            np.testing.assert_allclose(gradient, wanted, atol=1e-6)
        np.testing.assert_allclose(*shared, atol=2e-6)
    else:
        np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    if method not in ("gspo", "cispo"):
        for name, own in (("high_mean", "clipped_high"), ("low_mean", "clipped_low")):
            assert abs(aux[own] - reported[f"clip_ratio/{name}"]) < 1e-6
    if corrected:
        assert 0.05 < aux["importance_capped"] < 0.5


def test_the_gradient_of_gspo_gives_each_token_its_own_weight():
    logp, batch, weights = random_rollouts(True, spread=1e-3)
    objective = Objective(method="gspo")
    _, _, gradient = own_loss(logp, batch, objective)
    for b, g in np.ndindex(B, G):
        own = np.flatnonzero(batch.mask[b, g])
        ratio = np.exp((logp - batch.old_log_probs)[b, g, own].mean())
        advantage = batch.advantages[b, g]
        kept = float(ratio <= 1 + 4e-4 if advantage > 0 else ratio >= 1 - 3e-4)
        expected = -kept * ratio * advantage * weights[b, g, own] / len(own) / (B * G)
        np.testing.assert_allclose(gradient[b, g, own], expected, atol=1e-6)


def test_the_entropy_bonus_is_that_of_trl_where_all_tokens_count_alike():
    logp, batch, _ = random_rollouts(False)
    entropy = np.random.default_rng(2).random(logp.shape).astype(np.float32)
    objective = Objective(method="dapo", entropy=0.3)
    expected, wanted, reported = trl_loss(logp, batch, objective, None, entropy)
    value, aux, gradient = own_loss(logp, batch, objective, entropy)
    assert abs(value - expected) < 1e-5
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    assert abs(aux["entropy"] - reported["entropy"]) < 1e-6
    without, _, _ = own_loss(logp, batch, Objective(method="dapo"))
    assert value < without - 0.05


@pytest.mark.parametrize("method", METHODS)
def test_only_dr_grpo_leaves_out_the_deviation(method):
    rewards = np.random.default_rng(0).random((3, 8)).astype(np.float32)
    found = group_advantages(jnp.asarray(rewards), deviations=Objective(method=method).form.deviations)
    centred = rewards - rewards.mean(1, keepdims=True)
    expected = centred if method == "dr-grpo" else centred / rewards.std(1, keepdims=True)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_correction_of_the_divergence_changes_the_gradient_of_a_policy_that_has_not_moved():
    """Corrected it is that of KL(policy || reference), which TRL takes by default and the GRPO paper does not."""
    random = np.random.default_rng(1)
    logits, reference = random.normal(size=(2, 5)).astype(np.float32)

    def expected(logits, objective):
        """The loss over all samples of the policy before the update, each with its probability."""
        logp, old = jax.nn.log_softmax(logits), jax.lax.stop_gradient(jax.nn.log_softmax(logits))
        losses = []
        for token in range(5):
            one = (1, 1, 1)
            rows = Rollouts(
                prompts={},
                tokens=np.full(one, token),
                mask=np.ones(one, bool),
                old_log_probs=old[token].reshape(one),
                advantages=np.zeros(one[:2], np.float32),
                token_weights=np.ones(one, np.float32),
                reference_log_probs=jax.nn.log_softmax(reference)[token].reshape(one),
            )
            losses.append(ditpo_loss(logp[token].reshape(one), rows, objective)[0].total)
        return (jnp.exp(old) * jnp.stack(losses)).sum()

    def divergence(logits):
        logp = jax.nn.log_softmax(logits)
        return (jnp.exp(logp) * (logp - jax.nn.log_softmax(reference))).sum()

    plain, corrected = Objective(kl=1.0), Objective(kl=1.0, kl_bias_correction=True)
    for objective in (plain, corrected):
        np.testing.assert_allclose(expected(logits, objective), divergence(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(expected)(logits, corrected), jax.grad(divergence)(logits), atol=1e-6)
    assert np.abs(jax.grad(expected)(logits, plain) - jax.grad(divergence)(logits)).max() > 0.05

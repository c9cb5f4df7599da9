"""With all token weights 1 the loss is TRL's GRPO loss, and so is its gradient."""

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deer_jax.ditpo import Objective, Rollouts, ditpo_loss

torch = pytest.importorskip("torch")
trainer = pytest.importorskip("trl.trainer.grpo_trainer")

B, G, T = 3, 4, 9
LOSS_TYPES = {"sequence": "grpo", "token": "bnpo", "constant": "dr_grpo"}


def trl_loss(logp, batch: Rollouts, objective: Objective, weights):
    """The loss that `GRPOTrainer` computes from the log-probabilities of a batch, its gradient, and what it logs."""
    values = torch.tensor(np.asarray(logp).reshape(-1, T), requires_grad=True)
    own = MagicMock(
        _get_per_token_logps_and_entropies=lambda *args, **options: (values, torch.zeros_like(values), None),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=objective.kl,
        epsilon_low=objective.clip_low,
        epsilon_high=objective.clip_high,
        loss_type=LOSS_TYPES[objective.normalisation],
        max_completion_length=T,
        use_vllm=False,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        args=SimpleNamespace(use_bias_correction_kl=objective.kl_bias_correction, delta=None),
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x, sync_gradients=False),
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
    if weights is not None:  # advantages of tokens, as TRL takes them from subclasses
        inputs["advantages"] = inputs["advantages"][:, None] * torch.tensor(weights.reshape(-1, T))
    if batch.reference_log_probs is not None:
        inputs["ref_per_token_logps"] = torch.tensor(np.asarray(batch.reference_log_probs).reshape(-1, T))
    loss = trainer.GRPOTrainer._compute_loss(own, None, inputs)
    loss.backward()
    reported = {name: values[0] for name, values in own._metrics["train"].items()}
    return loss.item(), values.grad.numpy().reshape(B, G, T), reported


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("kl", "corrected"), [(0.0, False), (0.04, False), (0.04, True), (2.0, True)])
@pytest.mark.parametrize("normalisation", LOSS_TYPES)
def test_loss_and_gradient_are_those_of_trl(normalisation, kl, corrected, weighted):
    random = np.random.default_rng(0)
    old = random.normal(-1.5, 0.7, (B, G, T)).astype(np.float32)
    logp = old + random.normal(0, 0.4, old.shape).astype(np.float32)
    weights = (1 + random.random(old.shape)).astype(np.float32) if weighted else None
    batch = Rollouts(
        prompts={},
        tokens=np.zeros(old.shape, np.int32),
        mask=np.arange(T) < random.integers(1, T + 1, (B, G, 1)),
        old_log_probs=old,
        advantages=random.normal(size=(B, G)).astype(np.float32),
        token_weights=np.ones_like(old) if weights is None else weights,
        reference_log_probs=old + random.normal(-0.1, 0.3, old.shape).astype(np.float32) if kl else None,
    )
    objective = Objective(
        clip_low=0.2, clip_high=0.28, kl=kl, kl_bias_correction=corrected, normalisation=normalisation
    )
    expected, wanted, reported = trl_loss(logp, batch, objective, weights)

    def mean(values):
        loss, aux = ditpo_loss(values, batch, objective)
        return loss.total / loss.weight, aux

    (value, aux), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(logp))
    assert abs(float(value) - expected) < 1e-5
    np.testing.assert_allclose(gradient, wanted, atol=1e-6)
    assert abs(aux["clipped"].total / aux["clipped"].weight - reported["clip_ratio/region_mean"]) < 1e-6
    if kl:
        assert abs(aux["kl"].total / aux["kl"].weight - reported["kl"]) < 1e-6


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

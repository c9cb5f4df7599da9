"""The loss over the tokens of reports: the paper's cross-entropy, or a user's function."""

from collections.abc import Callable

from jaxtyping import Array, Float, Int

from common.io.functions import load_function
from common.training.losses import answer_loss, token_logprobs
from common.training.token_statistics import TokenLogprobs, token_statistics
from common.types import LossSum

# loss(tokens, targets, weights) -> the sum to differentiate, and further sums to report by name where there are some.
# `weights` are 1 on the tokens of reports, 0 on prompts and padding.
TokenLoss = Callable[
    [TokenLogprobs, Int[Array, "B S"], Float[Array, "B S"]], LossSum | tuple[LossSum, dict[str, LossSum]]
]


def named_loss(path: str) -> TokenLoss | None:
    """The loss that `loss` (module:function) names; None where it is empty. Raises UserError."""
    return load_function(path, "loss") if path else None


def report_loss(
    hidden: Float[Array, "B S D"],
    head: Float[Array, "V D"],
    targets: Int[Array, "B S"],
    weights: Float[Array, "B S"],
    *,
    chunk: int,
    head_trained: bool,
    loss: TokenLoss | None = None,
) -> tuple[LossSum, dict[str, LossSum]]:
    """`loss` of hidden states; the mean cross-entropy of the weighted tokens where there is none.

    `chunk` and `head_trained` are those of `token_logprobs`.
    """
    if loss is None:
        logp = token_logprobs(hidden, head, targets, wanted=weights != 0, chunk=chunk, head_trained=head_trained)
        return answer_loss(logp, weights), {}
    tokens = token_statistics(hidden, head, targets, wanted=weights != 0, chunk=chunk, head_trained=head_trained)
    found = loss(tokens, targets, weights)
    return found if isinstance(found, tuple) and not isinstance(found, LossSum) else (found, {})

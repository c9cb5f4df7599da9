"""The objectives that reinforcement learning maximises: one method by name, and options that change a part of it.

All are the same sum over sampled tokens (`deer_jax.ditpo`), and differ in six choices, which `METHODS` lists. The token
weights of DiTPO multiply the advantage in each of them.
"""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

from common.bounds import NotNegative, Within

Method = Literal["grpo", "dr-grpo", "dapo", "gspo", "cispo"]
Normalisation = Literal["sequence", "token", "constant"]

METHODS_OWN = -1  # a number that stands for the method's
Clip = Annotated[float, Within(METHODS_OWN, 1000)]
Refills = Annotated[int, Within(METHODS_OWN, 100)]


class Form(NamedTuple):
    """What a method consists of."""

    clip_low: float  # probability ratios below 1 - clip_low gain nothing more
    clip_high: float  # and above 1 + clip_high
    normalisation: Normalisation  # mean of each report, then of all; all tokens alike; all possible tokens
    deviations: bool = True  # advantages are divided by the standard deviation of the group
    of_sequence: bool = False  # the ratio of a token is the geometric mean over its report
    weight_clipped: bool = False  # the ratio is a clipped constant weight, so that each token keeps a gradient
    refills: int = 0  # times that groups with equal rewards are drawn again, of other studies


METHODS: dict[Method, Form] = {
    "grpo": Form(0.2, 0.2, "sequence"),  # arXiv:2402.03300
    "dr-grpo": Form(0.2, 0.2, "constant", deviations=False),  # arXiv:2503.20783
    "dapo": Form(0.2, 0.28, "token", refills=2),  # arXiv:2503.14476; how often it draws again is not said
    "gspo": Form(3e-4, 4e-4, "sequence", of_sequence=True),  # arXiv:2507.18071, as GSPO-token
    "cispo": Form(1.0, 4.0, "token", weight_clipped=True),  # arXiv:2506.13585; the cap of 5 is arXiv:2510.13786's
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """The clipped objective."""

    clip_low: Clip = METHODS_OWN  # probability ratios below 1 - clip_low gain nothing more; -1: the method's
    clip_high: Clip = METHODS_OWN  # and above 1 + clip_high; -1: the method's
    kl: NotNegative = 0.0  # weight of the divergence from the policy before RL; 0: none, and no reference is scored
    normalisation: Literal["method", "sequence", "token", "constant"] = "method"  # of the sum over tokens
    drop_equal_groups: bool = False  # groups whose rewards are all equal do not count in the denominator
    kl_bias_correction: bool = False  # the divergence times the probability ratio, as TRL does by default
    method: Method = "grpo"
    refills: Refills = METHODS_OWN  # groups with equal rewards are drawn again, of other studies; -1: the method's
    entropy: NotNegative = 0.0  # weight of the entropy of each token's distribution, which is added
    mask_unfinished: bool = False  # nothing is learnt from reports that reach the maximum length without ending
    importance_cap: NotNegative = 0.0  # of the ratio of training's probabilities to sampling's; 0: no correction

    @property
    def form(self) -> Form:
        """The method's form, with what is chosen otherwise."""
        own: dict[str, Any] = {
            name: value
            for name in ("clip_low", "clip_high", "refills")
            if (value := getattr(self, name)) != METHODS_OWN
        }
        if self.normalisation != "method":
            own["normalisation"] = self.normalisation
        return METHODS[self.method]._replace(**own)

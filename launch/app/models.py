"""The models of the app: named by options, loaded when first used, then kept."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from common.clinical.labeler import Labeler, labeler_path, load_labeler, replicate
from common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where the models lie; None is the small one that ships with the package."""

    retsta: Path | None = None
    unicross: Path | None = None
    labeler: str = "phantom"
    labeler_tokenizer: Path | None = None
    tokenizer: Path | None = None  # of the policy whose token weights are shown

    def check(self) -> None:
        """Raise UserError for a model that is not there."""
        labeler_path(self.labeler)
        for option in ("retsta", "unicross", "labeler_tokenizer", "tokenizer"):
            path = getattr(self, option)
            if path is not None and not path.is_dir():
                raise UserError(f"--{option.replace('_', '-')} {path}: no such directory; expected that of a model")


class Models:
    """What the pages compute with. For one thread at a time."""

    def __init__(self, sources: Sources):
        self.sources = sources

    @functools.cached_property
    def retsta(self) -> Any:
        """The model of `retsta_jax.standardize`. Raises UserError."""
        from retsta_jax.exported import load_embedded, load_model

        return load_embedded() if self.sources.retsta is None else load_model(self.sources.retsta)

    @functools.cached_property
    def unicross(self) -> Any:
        """The model of `unicross_jax.report`. Raises UserError."""
        from unicross_jax.config import EMBEDDED_RUN
        from unicross_jax.trained import load_trained

        return load_trained(self.sources.unicross or EMBEDDED_RUN)

    @functools.cached_property
    def labeler(self) -> Labeler:
        """What says which findings a report states. Raises UserError."""
        own = self.sources
        return load_labeler(own.labeler, own.labeler_tokenizer, option="--labeler-tokenizer", policy=own.tokenizer)

    @functools.cached_property
    def fast_labeler(self) -> Labeler:
        """The same on all devices, for many texts."""
        return replicate(self.labeler)

    @functools.cached_property
    def policy_reader(self) -> Any:
        """What cuts a report into the tokens of the policy, and the tokens that end one. Raises UserError."""
        from deer_jax.config import EMBEDDED_BASE
        from deer_jax.weights import rollout_reader

        return rollout_reader(self.sources.tokenizer or EMBEDDED_BASE)

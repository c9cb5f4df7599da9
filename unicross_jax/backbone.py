"""The frozen side of a model: CLIP, its tokenizer, and the embedding of report tokens."""

import dataclasses
from pathlib import Path
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from common.data.clip_tokenizer import CanEncode, ClipTokenizer
from common.data.tokenizers import WordTokenizer, load_tokenizer
from common.errors import UserError
from common.generation.settings import DecodeSettings
from common.io.fingerprints import fingerprint
from common.io.text import read_json_object
from common.models.clip import ClipConfig, init_params
from common.models.clip_weights import load_clip
from common.training.run import BaseWeights
from common.types import PyTree
from unicross_jax.adapters import AdapterConfig
from unicross_jax.config import EMBEDDED_CLIP, ModelConfig, RunConfig, check_clip
from unicross_jax.model import UniCrossConfig

BASE_FILE = "base.json"  # of an exported model


class ReportTokenizer(CanEncode, Protocol):
    """The tokens of reports; `WordTokenizer` and `ClipTokenizer` have all of it."""

    @property
    def vocab_size(self) -> int: ...
    def decode(self, ids: list[int]) -> str: ...


class Backbone(NamedTuple):
    """A CLIP that has been read: its name, sizes, parameters on the host or default device, and its tokenizer."""

    name: str
    config: ClipConfig
    params: PyTree
    tokenizer: ReportTokenizer


def load_backbone(config: ModelConfig, seed: int) -> Backbone:
    """The CLIP that a config names. Raises UserError where none is named, or its files are not what they should be."""
    check_clip(config)
    path = EMBEDDED_CLIP if config.clip == "embedded" else Path(config.clip)
    if not path.exists():
        raise UserError(f"model.clip: {path}: no such file in {Path.cwd()}; expected CLIP's weights, such as RN101.pt")
    tokenizer = clip_tokenizer(path, config.clip_vocabulary)
    sizes, params = load_clip(path, dtype=config.dtype, param_dtype=config.dtype)
    if tokenizer.vocab_size != sizes.vocab_size:
        raise UserError(
            f"{path}: has {sizes.vocab_size} token embeddings and its tokenizer {tokenizer.vocab_size} tokens; give "
            "the vocabulary that this CLIP was trained with (--model.clip-vocabulary)"
        )
    if config.clip_weights == "random":
        params = init_params(sizes, jax.random.fold_in(jax.random.key(seed), 1))
    return Backbone(path.name, sizes, params, tokenizer)


def clip_tokenizer(path: Path, vocabulary: str) -> ReportTokenizer:
    """The tokenizer of a CLIP: `words.json` in its directory, as the shipped one has it, or OpenAI's vocabulary."""
    if (path / "words.json").is_file():
        return load_words(path / "words.json")
    if not vocabulary:
        raise UserError(
            "model.clip_vocabulary: not given; name CLIP's token file with --model.clip-vocabulary "
            "bpe_simple_vocab_16e6.txt.gz"
        )
    return ClipTokenizer(vocabulary)


def load_words(file: Path) -> WordTokenizer:
    """A word vocabulary. Raises UserError where the file is no such thing."""
    tokenizer = load_tokenizer(file)
    assert isinstance(tokenizer, WordTokenizer)  # of a .json file that is not called tokenizer.json
    return tokenizer


def model_config(config: RunConfig, backbone: Backbone, tokenizer: ReportTokenizer) -> UniCrossConfig:
    """Sizes of the whole model, and what its ablation leaves out."""
    model = config.model
    adapters = AdapterConfig(
        dropout=model.adapter_dropout,
        within=model.adapters in ("both", "within"),
        across=model.adapters in ("both", "across"),
    )
    return UniCrossConfig(
        clip=backbone.config,
        vocabulary=tokenizer.vocab_size,
        conditioning=model.conditioning,
        heads=model.heads,
        vision_layers=model.vision_layers,
        decoder_layers=model.decoder_layers,
        dropout=model.dropout,
        adapters=None if model.adapters == "none" else adapters,
        modulation=model.modulation,
        multi_scale=model.multi_scale,
    )


def frozen_tree(backbone: Backbone, tokenizer: ReportTokenizer, config: UniCrossConfig) -> PyTree:
    """What the model reads and never changes. Raises UserError where CLIP has too few tokens for `published`."""
    embedding = report_embedding(backbone, tokenizer, config)
    return {"clip": backbone.params, "report_embedding": embedding}


def report_embedding(backbone: Backbone, tokenizer: ReportTokenizer, config: UniCrossConfig) -> Float[Array, "V W"]:
    """The input of CLIP's text side for each token of a report.

    `published`: the row of CLIP's embedding that has the token's number, whatever word that is to CLIP. `causal`: of a
    word, the mean of the embeddings of its pieces in CLIP's own tokens.
    """
    embedding = jnp.asarray(backbone.params["text"]["token_embedding"])
    if tokenizer is backbone.tokenizer:
        return embedding
    if config.conditioning == "published":
        if tokenizer.vocab_size > len(embedding):
            raise UserError(
                f"vocabulary: {tokenizer.vocab_size} tokens of reports, and CLIP has {len(embedding)}; the published "
                "conditioning looks them up there: raise vocabulary.minimum_count, or use the causal one"
            )
        return embedding[: tokenizer.vocab_size]
    assert isinstance(tokenizer, WordTokenizer)
    clip = backbone.tokenizer
    pieces = [[clip.pad_id], [clip.bos_id], [clip.eos_id], clip.encode("unknown"), *map(clip.encode, tokenizer.words)]
    owner = np.repeat(np.arange(len(pieces)), [len(ids) for ids in pieces])
    sums = jax.ops.segment_sum(embedding[np.concatenate(pieces)], owner, len(pieces))
    counts = np.maximum(np.bincount(owner, minlength=len(pieces)), 1)  # a word of which CLIP knows nothing has none
    return (sums / counts[:, None]).astype(embedding.dtype)


def frozen_weights(backbone: Backbone, frozen: PyTree) -> BaseWeights:
    """The frozen weights that a checkpoint belongs to."""
    return BaseWeights(backbone.name, fingerprint(frozen))


def base_note(clip: PyTree) -> dict[str, str]:
    """What an exported model says about the CLIP it needs."""
    return {"sha256": fingerprint(clip)}


def check_base(directory: Path, backbone: Backbone) -> None:
    """Raise UserError where an exported model says that it needs a different CLIP."""
    file = directory / BASE_FILE
    if not file.is_file():
        return
    needed = read_json_object(file).get("sha256")
    if not isinstance(needed, str):
        raise UserError(f"{file}: contains no sha256 of a CLIP; export the model again")
    found = base_note(backbone.params)["sha256"]
    if needed != found:
        raise UserError(
            f"{directory}: was trained on another CLIP (sha256 {needed[:12]}) than {backbone.name} (sha256 "
            f"{found[:12]}); give the CLIP it was trained on"
        )


def without_dropout(config: UniCrossConfig) -> UniCrossConfig:
    """The same model, to evaluate."""
    adapters = config.adapters and dataclasses.replace(config.adapters, dropout=0.0)
    return dataclasses.replace(config, dropout=0.0, adapters=adapters)


def decode_settings(config: RunConfig, tokenizer: ReportTokenizer) -> DecodeSettings:
    """How a run's reports are generated."""
    return DecodeSettings(
        max_new_tokens=config.max_length - 1,
        beams=config.beams,
        length_penalty=config.length_penalty,
        stop_ids=(tokenizer.eos_id,),
        # CLIP pads with a token that is also a word.
        forbidden_ids=tuple(id_ for id_ in {tokenizer.pad_id, tokenizer.bos_id} if not tokenizer.decode([id_])),
    )

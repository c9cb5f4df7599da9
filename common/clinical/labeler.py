"""The clinical labeler: CheXbert (arXiv:2004.09167), or a smaller one of the same architecture, from text to classes.

Text is preprocessed as in CheXbert: stripped, runs of white space collapsed to one space, lower-case WordPiece, and
truncated at the end to fit the window. Token spans count characters of the original text.
"""

import functools
import re
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from common.clinical.report_labeler import Labelled
from common.data.summary import Cut, data_line, share_of
from common.errors import UserError
from common.generation.generate import batches, padded
from common.io.fingerprints import digest_of, weights_record
from common.io.finite import check_finite, precision_remedy
from common.io.safetensors import disk_errors, open_tensors
from common.io.terminal import printable, say
from common.io.text import read_json_object, read_text
from common.io.torch_archive import read_archive
from common.models.attention_choice import announce_attention
from common.models.bert import ClassifierConfig, attention_use, chexbert_logits, unstack_layers, word_embeddings
from common.models.bert_weights import load_classifier
from common.training.parallel import DeviceLayout, device_put_tree, make_device_layout, place_batch
from common.types import PyTree

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PHANTOM = Path(__file__).parent / "assets" / "labeler"  # for phantom reports
IN_RUN = "labeler"  # where a run of `deer train-labeler` has its labeler
START, END, UNKNOWN = "[CLS]", "[SEP]", "[UNK]"
SPECIAL = ("[PAD]", UNKNOWN, START, END, "[MASK]")  # in the order of bert-base-uncased
VOCABULARY, WHOLE = "vocab.txt", "tokenizer.json"  # of the directory of a tokenizer
LEAST_ROWS = 32  # of a batch; fewer texts than it has rows come as a power of two, so that few programs are compiled
WORD = re.compile(r"\S+")

Span = tuple[int, int]


class Labeler(NamedTuple):
    """A labeler that has been read from `path`. `tokenizer` is one of the tokenizers library.

    With a `layout`, on whose devices the parameters stand, batches are split over them (`replicate`).
    """

    config: ClassifierConfig
    params: PyTree
    tokenizer: "Tokenizer"
    layout: DeviceLayout | None = None
    path: Path | None = None
    batch_size: int = 32  # of `label`

    @property
    def window(self) -> int:
        """The most tokens that it reads, [CLS] and [SEP] among them."""
        return self.config.encoder.max_position_embeddings

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of what it labels."""
        return self.config.labels

    def label(self, texts: Sequence[str], ids: Sequence[object] | None = None) -> Labelled:
        """The classes of texts. Raises UserError as `label_texts` does."""
        return self.labelled(label_texts(self, texts, self.batch_size, ids))

    def labelled(self, found: "Labels") -> Labelled:
        """What it found, in the form of every `ReportLabeler`."""
        return Labelled(found.classes, Cut(found.cut, self.window), found.unknown)

    def record(self) -> dict[str, str]:
        """Its name, and digests of what it was read from, which is read again for that."""
        assert self.path is not None
        own = self.path.parent if self.path.name == IN_RUN and self.path != PHANTOM else self.path
        return {"name": "phantom" if own == PHANTOM else own.name, **labeler_digests(self)}


def replicate(labeler: Labeler) -> Labeler:
    """The labeler on all devices of this process, as it reads fastest (`unstack_layers`)."""
    layout = make_device_layout("auto", devices=jax.local_devices())
    return labeler._replace(params=device_put_tree(unstack_layers(labeler.params), layout), layout=layout)


def labeler_digests(labeler: Labeler) -> dict[str, str]:
    """Digests of what tells a labeler that was read from a path from others, by what they are of."""
    assert labeler.path is not None
    weights = weights_record(open_tensors(labeler.path) if labeler.path.is_dir() else read_archive(labeler.path))
    sizes, words = repr(labeler.config).encode(), labeler.tokenizer.to_str().encode()
    return {"weights": weights, "sizes": digest_of(sizes), "tokenizer": digest_of(words)}


class Encoded(NamedTuple):
    """Tokens of texts: `spans[n][t]` is what token `ids[n][t]` stands for, as (start, end) in characters of text n.

    The empty span (0, 0) belongs to [CLS] and [SEP]. `cut[n]` tells whether text n did not fit into the window.
    """

    ids: list[list[int]]
    spans: list[list[Span]]
    cut: list[bool]


class Labels(NamedTuple):
    """What a labeler says of N texts: the likeliest class of each label, all logits, and how many texts were cut.

    Logits are -inf beyond the classes of a label, and finite elsewhere unless `finite` says otherwise. `unknown`
    counts texts with a word that the vocabulary lacks.
    """

    classes: Int[np.ndarray, "N K"]
    logits: Float[np.ndarray, "N K C"]
    finite: Bool[np.ndarray, " N"]
    cut: int
    unknown: int


def load_labeler(
    path: str | Path,
    tokenizer: str | Path | None = None,
    *,
    option: str = "",
    policy: Path | None = None,
    batch_size: int = 32,
) -> Labeler:
    """The labeler at `path`: `chexbert.pth`, the output of `deer train-labeler`, or "phantom" for the one shipped.

    `tokenizer` is a directory with the `vocab.txt` of bert-base-uncased, `option` what names it on the command line.
    Where none is given, a directory of ours holds its own, and that of a single file lies beside it, or with the
    tokenizer of the `policy`. `batch_size` is that of `label`. Raises UserError for what is missing or does not fit
    together.
    """
    path = labeler_path(path)
    if tokenizer is None:
        tokenizer = path if path.is_dir() else _vocabulary_directory(path, option, policy)
    loaded = load_tokenizer(Path(tokenizer))
    config, params = load_classifier(path, sizes=tokenizer)
    words, embeddings = loaded.get_vocab_size(), config.encoder.vocab_size
    if words != embeddings:
        fit = (
            f"{tokenizer}: the tokenizer has {words} words, but {path} has embeddings for {embeddings}; give the "
            "tokenizer that the labeler was trained with"
        )
        if words > embeddings:
            raise UserError(fit)
        # Embeddings may be padded, as for a multiple of 64.
        say(f"warning: {fit}, unless the embeddings are padded", error=True)
    return Labeler(config, params, loaded, path=path, batch_size=batch_size)


def labeler_path(path: str | Path) -> Path:
    """The file or directory of the labeler that `path` names. Raises UserError where there is none."""
    path = PHANTOM if str(path) == "phantom" else Path(path)
    path = path / IN_RUN if (path / IN_RUN).is_dir() else path
    if not path.exists():
        raise UserError(
            f"{path}: no such labeler; expected chexbert.pth, the directory of a trained labeler, or 'phantom'"
        )
    if path.is_dir() and not (path / "config.json").exists() and (files := sorted(path.glob("*.pth"))):
        raise UserError(f"{path}: is a directory without config.json; name the file in it, such as {files[0]}")
    return path


def _vocabulary_directory(file: Path, option: str, policy: Path | None) -> Path:
    """Where the vocabulary of a labeler that is a single file lies. Raises UserError."""
    candidates = [(file.parent, VOCABULARY), (file.parent, WHOLE)]
    if policy is not None:  # whose tokenizer.json is as a rule that of its language model
        candidates += [(policy, VOCABULARY), *([(policy, WHOLE)] if is_wordpiece(policy) else [])]
    for directory, name in candidates:
        if (directory / name).is_file():
            return directory
    raise UserError(
        f"{file}: contains no vocabulary; put the vocab.txt of bert-base-uncased next to it"
        + (f", or name its directory with {option}" if option else "")
    )


def is_wordpiece(directory: Path) -> bool:
    """Whether the tokenizer of a directory is of BERT's kind. Raises UserError for a damaged `tokenizer.json`."""
    if (whole := directory / WHOLE).is_file():
        model = read_json_object(whole).get("model")
        return isinstance(model, dict) and "max_input_chars_per_word" in model  # of WordPiece alone
    bare = (directory / VOCABULARY).is_file()  # beside which BPE and SentencePiece models may lie
    return bare and not (directory / "vocab.json").is_file() and not any(directory.glob("*.model"))


def load_tokenizer(directory: Path) -> "Tokenizer":
    """BERT's lower-casing WordPiece tokenizer: `vocab.txt`, one word per line, or `tokenizer.json`.

    Raises UserError.
    """
    file, whole = directory / VOCABULARY, directory / WHOLE
    if whole.is_file() and not file.is_file():
        return _whole_tokenizer(whole)
    expected = "the vocabulary of the labeler, for CheXbert that of bert-base-uncased"
    words = read_text(file, expected).removesuffix("\n").split("\n")
    vocabulary = {word: number for number, word in enumerate(words)}
    if missing := {START, END, UNKNOWN} - vocabulary.keys():
        raise UserError(f"{file}: {min(missing)} is missing; expected a WordPiece vocabulary, one word per line")
    return make_tokenizer(vocabulary)


def _whole_tokenizer(file: Path) -> "Tokenizer":
    from tokenizers import Tokenizer

    try:
        tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        tokenizer.encode("\u89c6 heart")  # also an unknown word must have a token
    except Exception as error:  # what the tokenizers library raises has no type of its own
        raise UserError(f"{file}: is not a tokenizer ({printable(error)}); expected that of the labeler") from error
    if missing := [mark for mark in (START, END) if tokenizer.token_to_id(mark) is None]:
        raise UserError(f"{file}: {missing[0]} is missing; expected a tokenizer of BERT")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def make_tokenizer(vocabulary: dict[str, int]) -> "Tokenizer":
    """BERT's tokenizer (uncased) over a vocabulary."""
    from tokenizers.implementations import BertWordPieceTokenizer

    tokenizer: Any = BertWordPieceTokenizer(vocabulary, lowercase=True)
    return tokenizer


def train_tokenizer(texts: Sequence[str], size: int) -> "Tokenizer":
    """A WordPiece vocabulary of these texts. Printable ASCII is always in it, so that no English word is unknown.

    The characters are given beforehand because the library numbers them in the order of a hash table, which made
    another vocabulary in each process.
    """
    from tokenizers.implementations import BertWordPieceTokenizer

    characters = [*string.digits, *string.ascii_lowercase, *string.punctuation]
    special = [*SPECIAL, *characters, *(f"##{character}" for character in characters)]
    trainer: Any = BertWordPieceTokenizer(lowercase=True)
    trainer.train_from_iterator(texts, vocab_size=size, show_progress=False, special_tokens=special)
    return make_tokenizer(trainer.get_vocab())


def save_vocabulary(file: Path, tokenizer: "Tokenizer") -> None:
    """Write `vocab.txt` as `load_tokenizer` reads it. Raises UserError."""
    words = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    with disk_errors(file.parent):
        file.write_text("".join(f"{word}\n" for word, _ in words), encoding="utf-8")


def clean_text(text: str) -> tuple[str, Int[np.ndarray, " n"]]:
    """The text as CheXbert reads it, and the index in `text` of each of its characters."""
    words = list(WORD.finditer(text))
    indices = [index for word in words for index in (*range(*word.span()), word.end())]
    return " ".join(word[0] for word in words), np.array(indices[:-1], np.int64)


def encode(labeler: Labeler, texts: Sequence[str]) -> Encoded:
    """Tokens and spans of texts: [CLS], at most `window - 2` tokens, [SEP]. An empty text is [CLS] [SEP]."""
    cleaned = [clean_text(text) for text in texts]
    encodings = labeler.tokenizer.encode_batch([text for text, _ in cleaned], add_special_tokens=False)
    start, end = marks(labeler.tokenizer)
    most = labeler.window - 2
    result = Encoded([], [], [])
    for (_, indices), encoding in zip(cleaned, encodings, strict=True):
        spans = [(int(indices[first]), int(indices[last - 1]) + 1) for first, last in encoding.offsets[:most]]
        result.ids.append([start, *encoding.ids[:most], end])
        result.spans.append([(0, 0), *spans, (0, 0)])
        result.cut.append(len(encoding.ids) > most)
    return result


def marks(tokenizer: "Tokenizer") -> tuple[int, int]:
    """The ids of [CLS] and [SEP], which every loaded tokenizer has."""
    start, end = tokenizer.token_to_id(START), tokenizer.token_to_id(END)
    assert start is not None
    assert end is not None
    return start, end


def label_texts(
    labeler: Labeler, texts: Sequence[str], batch_size: int = 32, ids: Sequence[object] | None = None
) -> Labels:
    """Classes and logits of texts, in batches of one length bucket each; a row does not depend on its neighbours.

    Raises UserError where logits are not finite, naming the text by its entry in `ids`, or by its number from 1.
    """
    found = read_texts(labeler, texts, batch_size)
    check_labels(labeler, found.finite, range(1, len(texts) + 1) if ids is None else ids)
    return found


def check_labels(labeler: Labeler, finite: Iterable[Any], ids: Sequence[object]) -> None:
    """Raise UserError naming the first of `ids` whose logits are not `finite`."""
    check_finite(finite, ids, "the labeler's logits", precision_remedy(labeler.config.encoder.dtype))


def read_texts(labeler: Labeler, texts: Sequence[str], batch_size: int) -> Labels:
    """`label_texts`, which only tells what is not finite."""
    encoded = encode(labeler, texts)
    return labels_of(labeler, encoded, read_tokens(labeler, encoded, batch_size))


def read_tokens(
    labeler: Labeler, encoded: Encoded, batch_size: int, only: Sequence[int] | None = None
) -> Float[np.ndarray, "N K C"]:
    """Logits of texts, or of `only` some of them; -inf for the others."""
    config = labeler.config
    logits = np.full((len(encoded.ids), len(config.labels), max(config.classes)), -np.inf, np.float32)
    for rows, ids, mask in token_batches(labeler, encoded, batch_size, only):
        logits[rows] = np.asarray(_jitted_logits(config, labeler.params, ids, mask))
    return logits


def labels_of(labeler: Labeler, encoded: Encoded, logits: Float[np.ndarray, "N K C"]) -> Labels:
    """The labels of texts whose logits are these."""
    own = np.arange(logits.shape[-1]) < np.array(labeler.config.classes)[:, None]
    unknown = labeler.tokenizer.token_to_id(UNKNOWN)
    return Labels(
        logits.argmax(-1).astype(np.int8),
        logits,
        np.asarray((np.isfinite(logits) | ~own).all((1, 2))),
        sum(encoded.cut),
        sum(unknown in ids for ids in encoded.ids),
    )


def texts_line(
    files: Sequence[object],
    counts: Mapping[str, int],
    labeler: Labeler,
    texts: Sequence[str],
    kind: str = "rows",
    notes: Sequence[str] = (),
) -> str:
    """The line that names texts for a labeler: how many it cuts, and the share of their words that it does not know."""
    encoded = encode(labeler, texts)
    cut = Cut(sum(encoded.cut), labeler.window)
    unknown = share_of(labeler.tokenizer.token_to_id(UNKNOWN), encoded.ids, marks(labeler.tokenizer))
    return data_line(files, f"{kind}, cleaning white space", counts, cut=cut, unknown=unknown, notes=notes)


def token_batches(
    labeler: Labeler, encoded: Encoded, batch_size: int, only: Sequence[int] | None = None
) -> Iterator[tuple[list[int], Int[Array, "B S"], Bool[Array, "B S"]]]:
    """(rows, ids [B S], mask [B S]) of texts of one length bucket, where the labeler is; the last row fills up a batch.

    With `only`, of these texts. Over several devices a batch has the next multiple of their number.
    """
    announce_attention([attention_use(labeler.config.encoder)])
    only = range(len(encoded.ids)) if only is None else only
    batch_size = min(batch_size, max(LEAST_ROWS, 1 << max(len(only) - 1, 0).bit_length()))
    if labeler.layout is not None:
        batch_size = -(-batch_size // labeler.layout.row_shards) * labeler.layout.row_shards
    for members, length in batches([len(encoded.ids[row]) for row in only], batch_size):
        rows = [only[member] for member in members]
        batch = padded([encoded.ids[row] for row in rows], min(length, labeler.window), left=False)
        arrays = np.asarray(batch.tokens), np.asarray(batch.mask)
        yield rows, *(arrays if labeler.layout is None else place_batch(arrays, labeler.layout))


@functools.partial(jax.jit, static_argnums=0)
def _jitted_logits(
    config: ClassifierConfig, params: PyTree, ids: Int[Array, "B S"], mask: Bool[Array, "B S"]
) -> Float[Array, "B K C"]:
    return chexbert_logits(config, params, word_embeddings(params, ids), mask)

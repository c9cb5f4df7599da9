"""Reports as tokens: the prompt given to the model, and the answer it learns."""

from collections.abc import Iterable, Iterator

from common.data.records import ReportPair
from common.data.tokenizers import Tokenizer


def prompt_text(instruction: str, source: str) -> str:
    """The report after the instruction: the turn of the user."""
    return f"{instruction}\n\n{source}"


def prompt_tokens(tokenizer: Tokenizer, instruction: str, source: str) -> list[int]:
    """`prompt_text` as one turn of the user, ready for the assistant's answer."""
    return tokenizer.chat([{"role": "user", "content": prompt_text(instruction, source)}])


def encode_pairs(
    tokenizer: Tokenizer, instruction: str, pairs: Iterable[ReportPair]
) -> Iterator[tuple[str, list[int], list[int]]]:
    """(id, prompt tokens, answer tokens with the end-of-answer token) of each pair."""
    for pair in pairs:
        prompt = prompt_tokens(tokenizer, instruction, pair.source)
        yield pair.id, prompt, [*tokenizer.encode(pair.target), tokenizer.eos_id]

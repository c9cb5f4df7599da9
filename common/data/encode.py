"""Token sequences to train on: a prompt, then the answer that is learned."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32

from common.data.records import Quarantine
from common.errors import UserError


@dataclass(frozen=True, eq=False)
class Example:
    """Prompt tokens, then answer tokens with their stop token; the answer is `tokens[answer_start:]`.

    `answer_start` is at least 1, because a token is predicted from the one before it.
    """

    id: str
    tokens: Int32[np.ndarray, " n"]
    answer_start: int


def encode_examples(
    encoded: Iterable[tuple[str, Sequence[int], Sequence[int]]], max_length: int, quarantine: Quarantine
) -> list[Example]:
    """Examples from (id, prompt tokens, answer tokens), in the order given; the answer ends with its stop token.

    An example of more than `max_length` tokens is quarantined whole: cut, it would teach to stop early or never. So
    is one without a prompt or without an answer. To learn a whole text, its first token is the prompt.

    Raises UserError where no example is left.
    """
    examples = []
    for id, prompt, answer in encoded:
        if not len(prompt):
            quarantine.add(id, "no prompt tokens")
        elif not len(answer):
            quarantine.add(id, "no answer tokens")
        elif len(prompt) + len(answer) > max_length:
            quarantine.add(id, f"longer than {max_length} tokens")
        else:
            examples.append(Example(id, np.concatenate([prompt, answer]).astype(np.int32), len(prompt)))
    if not examples:
        raise UserError(
            f"no example to train on: {quarantine.summary()}; expected at least one example with a prompt and an "
            f"answer of at most {max_length} tokens together; check the data or raise the maximum length"
        )
    return examples

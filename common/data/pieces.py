"""Shared by all tokenizers: the bytes of a piece, and conversations without a chat template."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence

Messages = Sequence[Mapping[str, str]]  # {"role": "system" | "user" | "assistant", "content": text}

CHAT_MARKS = ("<|im_start|>", "<|im_end|>")
TURN_ENDS = (CHAT_MARKS[1], "<|eot_id|>")  # of the assistant's turn: ChatML, Llama 3
SPACE = "\u2581"  # how SentencePiece writes a space
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


@functools.cache
def byte_of_character() -> dict[str, int]:
    """The printable characters by which byte-level BPE writes the 256 bytes (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def byte_level_bytes(piece: str) -> bytes:
    """The bytes of a byte-level piece; as it is written where it has other characters, as `tokenizers` decodes it."""
    values = [byte_of_character().get(character) for character in piece]
    known = [value for value in values if value is not None]
    return bytes(known) if len(known) == len(values) else piece.encode("utf-8", "replace")


def sentencepiece_bytes(piece: str) -> bytes:
    """The bytes of a SentencePiece piece."""
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(SPACE, " ").encode("utf-8", "replace")


def without_first_space(written: list[bytes], each: bool = False) -> list[bytes]:
    """Without the space before the first word, or (`each`) without one in each piece until something is written."""
    written = list(written)
    for index, piece in enumerate(written):
        written[index] = piece.removeprefix(b" ")
        if written[index] or (piece and not each):
            break
    return written


def chat_without_template(
    encode: Callable[[str], list[int]],
    messages: Messages,
    add_generation_prompt: bool,
    *,
    start: Sequence[int],
    end: int,
    marks: Sequence[int],
) -> list[int]:
    """`start`, then ChatML where both `marks` are known, otherwise lines `role: content` with `end` after answers."""
    ids = list(start)
    chatml = len(marks) == len(CHAT_MARKS)
    for message in messages:
        role, content = message["role"], message["content"]
        if chatml:
            ids += [marks[0], *encode(f"{role}\n{content}"), marks[1], *encode("\n")]
        else:
            ids += [*encode(f"{role}: {content}\n"), *([end] if role == "assistant" else [])]
    if add_generation_prompt:
        ids += [marks[0], *encode("assistant\n")] if chatml else encode("assistant:")
    return ids


def chat_by_roles(
    encode: Callable[[str], list[int]], messages: Messages, add_generation_prompt: bool, roles: Mapping[str, int]
) -> list[int]:
    """The token of the role, then the text, for each message; a role without a token, such as system, has none.

    As Baichuan2 is published, with code in place of a template.
    """
    ids: list[int] = []
    for message in messages:
        ids += [roles[message["role"]]] if message["role"] in roles else []
        ids += encode(message["content"])
    return [*ids, roles["assistant"]] if add_generation_prompt else ids

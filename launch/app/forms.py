"""Forms as the pages send them: fields of text and files, bounded in number and bytes."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple

from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from common.errors import UserError
from common.io.text import decode_text

MOST_BYTES = 64 << 20  # of a form with its files
MOST_TEXT = 256 << 10  # bytes of a field of text
MOST_FILES = 4
MOST_FIELDS = 16
READ_AWAY = 2 << 30  # bytes of a form that is too large are read on, as browsers show an answer only after that


class TooLarge(UserError):
    """A form that has too many bytes."""


class File(NamedTuple):
    """A file as it was sent; its name is as its sender says."""

    name: str
    content: bytes


class Form(NamedTuple):
    """The fields of a form: texts with newlines as Python has them, and files that are not empty."""

    texts: dict[str, str]
    files: dict[str, list[File]]

    def text(self, name: str) -> str:
        """A field of text; "" where it is missing."""
        return self.texts.get(name, "")


async def read_form(request: Request, limit: int = MOST_BYTES) -> Form:
    """The form of a POST request. Raises UserError for one that cannot be read, `TooLarge` for too many bytes."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise UserError("The form was sent in a way that is not read here; expected multipart/form-data.")
    parser = MultiPartParser(
        request.headers,
        _bounded(request.stream(), limit),
        max_files=MOST_FILES,
        max_fields=MOST_FIELDS,
        max_part_size=MOST_TEXT,
    )
    try:
        parsed = await parser.parse()
    except (MultiPartException, FormParserError, KeyError) as error:
        reason = getattr(error, "message", "") or "it is damaged"
        raise UserError(f"The form cannot be read: {reason.rstrip('.')}.") from None
    texts: dict[str, str] = {}
    files: dict[str, list[File]] = {}
    try:
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                if content := await value.read():
                    files.setdefault(name, []).append(File(value.filename or "file", content))
            else:
                texts[name] = decode_text(value.encode("utf-8", "replace"), "The text")
    finally:
        await parsed.close()
    return Form(texts, files)


async def _bounded(stream: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes, None]:
    """The first `limit` bytes; raises `TooLarge` at the end of a stream that has more."""
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size <= limit:
            yield chunk
        elif size > READ_AWAY:
            break
    if size > limit:
        raise TooLarge(f"These files have more than {limit >> 20} MB together; choose smaller ones.")

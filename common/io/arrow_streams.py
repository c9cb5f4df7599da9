"""The record batches of an Arrow stream in a store, of which only the columns that are needed travel.

Of a stream pyarrow reads everything, of an Arrow file what is asked for, and a file is a stream with a footer that says
where its batches begin. So the heads of the messages are read, some hundred bytes a batch, and the footer is made of
them: the one that pyarrow writes of as many empty batches, with their places put in. The layout of messages and blocks
is that of Arrow's columnar format (https://arrow.apache.org/docs/format/Columnar.html), in flatbuffers.
"""

import functools
import io
import struct
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from common.io.image_columns import images_apart
from common.io.stored_files import StoredFile, StoredObject

MARK = b"\xff\xff\xff\xff"  # that a message begins with
FILE_MAGIC_BYTES = 8  # before the first message of a file
HEAD_BYTES = 1024  # of a message, at first
DICTIONARY, BATCH = 2, 3  # kinds of messages
BLOCK = struct.Struct("<qi4xq")  # of a footer: the place of a message, the size of its head and of its body


class Message(NamedTuple):
    """A message of a stream: what it holds, where it begins, its head, and how long its body is."""

    kind: int
    begin: int
    head: bytes
    body: int

    @property
    def block(self) -> bytes:
        """As a footer has it."""
        return BLOCK.pack(self.begin, len(self.head) + 8, self.body)

    @property
    def body_begin(self) -> int:
        """Where the body begins."""
        return self.begin + 8 + len(self.head)


class Stream(NamedTuple):
    """The batches of a stream, and the bytes that make it a file."""

    schema: Any  # pyarrow.Schema
    batches: list[Message]
    footer: bytes


def batches_of_stream(
    stored: StoredObject, columns: Collection[str], later: Collection[str], part: int | None
) -> Iterator[tuple[list[str], int, Any, set[str]]] | None:
    """The columns, of each batch the place and the `columns`, and which of them are zeros, of `later`; or of one batch.

    None for a stream with dictionaries, whose batches do not stand alone.
    """
    stream = _stream(stored)
    return None if stream is None else _batches(stored, stream, columns, later, part)


def _batches(
    stored: StoredObject, stream: Stream, columns: Collection[str], later: Collection[str], part: int | None
) -> Iterator[tuple[list[str], int, Any, set[str]]]:
    import pyarrow as pa

    schema = stream.schema
    images = images_apart(schema, later)
    numbers = [number for number, message in enumerate(stream.batches) if part in (None, message.begin)]
    if part is not None and not numbers:
        raise LookupError(f"no record batch at byte {part}")
    skipped = {
        number: {name: place for name in images if (place := _bytes_place(stream.batches[number], schema, name))}
        for number in numbers
    }
    places = [place for found in skipped.values() for place in found.values()]
    wanted = [index for index, name in enumerate(schema.names) if name in columns]
    # Of no column at all the count of rows would not be known.
    options = pa.ipc.IpcReadOptions(included_fields=wanted or [0])
    with StoredFile(stored, places, stream.footer) as file, pa.ipc.open_file(file, options=options) as opened:
        for number in numbers:
            yield schema.names, stream.batches[number].begin, opened.get_batch(number), {*skipped[number]}


@functools.lru_cache(maxsize=64)
def _stream(stored: StoredObject) -> Stream | None:
    import pyarrow as pa

    with StoredFile(stored) as file:
        messages = _messages(file, 0, stored.size)
        if any(message.kind == DICTIONARY for message in messages):
            return None
        file.seek(0)
        with pa.ipc.open_stream(file) as stream:
            schema = stream.schema
    batches = [message for message in messages if message.kind == BATCH]
    empty = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
    written = io.BytesIO()
    with pa.ipc.new_file(written, schema) as file_writer:
        for _ in batches:
            file_writer.write_batch(empty)
    content = written.getvalue()
    like = [one for one in _messages(written, FILE_MAGIC_BYTES, len(content)) if one.kind == BATCH]
    footer = content[like[-1].body_begin + like[-1].body :] if like else content[FILE_MAGIC_BYTES:]
    blocks = b"".join(one.block for one in like)
    if blocks and footer.count(blocks) != 1:
        raise OSError("pyarrow writes footers of Arrow files in another way than is known here")
    return Stream(schema, batches, footer.replace(blocks, b"".join(one.block for one in batches)) if blocks else footer)


def _messages(file: Any, begin: int, size: int) -> list[Message]:
    """The messages of a file up to its end, or to the mark of the end. Raises OSError for a damaged one."""
    found = []
    try:
        while begin < size:
            file.seek(begin)
            start = file.read(min(HEAD_BYTES, size - begin))
            length = struct.unpack_from("<i", start, 4)[0]
            if start[:4] != MARK or length <= 0:
                if start[:4] == MARK and length == 0:
                    break
                raise OSError(f"no message of Arrow at byte {begin}")
            head = start[8 : 8 + length]
            if len(head) < length:
                file.seek(begin + 8)
                head = file.read(length)
            root = _root(head)
            kind, body = _field(head, root, 1), _field(head, root, 3)
            message = Message(head[kind], begin, head, struct.unpack_from("<q", head, body)[0] if body else 0)
            if message.body < 0 or message.body_begin + message.body > size:
                raise OSError(f"the message at byte {begin} is cut off")
            found.append(message)
            begin = message.body_begin + message.body
    except (struct.error, IndexError) as error:
        raise OSError(f"the message at byte {begin} is damaged") from error
    return found


def _bytes_place(message: Message, schema: Any, name: str) -> tuple[int, int] | None:
    """Where the encoded images of a column begin and end in the stream; None where that cannot be told."""
    index = schema.get_field_index(name)
    kinds = schema.types
    if index < 0 or not all(map(_is_plain, kinds)):
        return None
    number = sum(map(_buffers, kinds[:index])) + _bytes_buffer(kinds[index])
    try:
        root = _root(message.head)
        batch = _follow(message.head, _field(message.head, root, 2))
        if _field(message.head, batch, 3):  # compressed
            return None
        buffers = _follow(message.head, _field(message.head, batch, 2))
        offset, length = struct.unpack_from("<qq", message.head, buffers + 4 + 16 * number)
    except (struct.error, IndexError) as error:
        raise OSError(f"the message at byte {message.begin} is damaged") from error
    return message.body_begin + offset, message.body_begin + offset + length


def _is_plain(kind: Any) -> bool:
    """Whether an array of a type has a fixed number of buffers in a batch."""
    from pyarrow import types

    others = (types.is_union, types.is_run_end_encoded, types.is_string_view, types.is_binary_view, types.is_list_view)
    return not any(is_other(kind) for is_other in others) and all(map(_is_plain, _children(kind)))


def _buffers(kind: Any) -> int:
    from pyarrow import types

    return 0 if types.is_null(kind) else int(kind.num_buffers) + sum(map(_buffers, _children(kind)))


def _bytes_buffer(kind: Any) -> int:
    """Of the buffers of a column of encoded images, the number of the one with their bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        before = kind.get_field_index("bytes")
        return 1 + sum(map(_buffers, _children(kind)[:before])) + _bytes_buffer(kind.field(before).type)
    if _children(kind):
        return int(kind.num_buffers) + _bytes_buffer(kind.value_type)
    return int(kind.num_buffers) - 1


def _children(kind: Any) -> list[Any]:
    return [kind.field(number).type for number in range(kind.num_fields)]


def _root(head: bytes) -> int:
    return int(struct.unpack_from("<I", head)[0])


def _field(head: bytes, table: int, number: int) -> int:
    """Where a field of a table of flatbuffers lies; 0 where it has none."""
    entries = table - struct.unpack_from("<i", head, table)[0]
    if 4 + 2 * number >= struct.unpack_from("<H", head, entries)[0]:
        return 0
    offset = int(struct.unpack_from("<H", head, entries + 4 + 2 * number)[0])
    return table + offset if offset else 0


def _follow(head: bytes, place: int) -> int:
    return place + int(struct.unpack_from("<I", head, place)[0])

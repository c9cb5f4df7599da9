"""Records of TFRecord files, without TensorFlow: https://www.tensorflow.org/tutorials/load_data/tfrecord.

A record is its length (8 bytes), a checksum of these, its bytes, and a checksum of those: CRC32C, rotated and shifted,
in 4 bytes each. Grain's reader of such files checks neither, and takes whatever length is there.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path

HEAD, CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")
MASK = 0xA282EAD8


def tf_records(file: Path, begin: int = 0) -> Iterator[tuple[int, bytes]]:
    """Where each record of a file begins, and its bytes, from the one that begins at a byte on.

    Raises OSError for a record that is cut off or damaged.
    """
    import google_crc32c

    def check(content: bytes, checksum: int) -> None:
        found = google_crc32c.value(content)
        if ((found >> 15 | found << 17) + MASK) & 0xFFFFFFFF != checksum:
            raise OSError(f"the record at byte {begin} is damaged, or the file is compressed or no TFRecord")

    with file.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        opened.seek(begin)
        while begin < size:
            head = opened.read(HEAD.size)
            if len(head) < HEAD.size:
                raise OSError(f"the record at byte {begin} is cut off")
            length, checksum = HEAD.unpack(head)
            check(head[:8], checksum)
            if length > size - begin - HEAD.size - CHECKSUM.size:
                raise OSError(f"the record at byte {begin} is cut off")
            content = opened.read(length)
            check(content, *CHECKSUM.unpack(opened.read(CHECKSUM.size)))
            yield begin, content
            begin += HEAD.size + length + CHECKSUM.size

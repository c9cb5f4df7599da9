"""Valid files with a few edits, as Hypothesis strategies."""

from hypothesis import strategies as st

# What may trip up readers of text, numbers and containers.
TOKENS = (
    b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n\n", b'"', b"\\", b",", b"\t", b"{", b"[" * 2000, b"}",
    b"NaN", b"1e999", b"-1", b"9" * 5000, b"null", b"true", b"\xf0\x9f\xa9\xba", b"\xe2\x80\xa8", b"\xed\xa0\x80",
    b"../../x", b"/dev/zero", b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>&b;", b"&lt;", b"<a>",
    b"\xff\xff\xff\x7f", b"\x00" * 64,
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """One of `seeds` after one to six edits: bytes are deleted, replaced, doubled or inserted."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        end = min(start + draw(st.sampled_from((0, 1, 2, 4, 8, 64, 1 << 30))), len(content))
        kind = draw(st.sampled_from(("token", "bytes", "nothing", "twice")))
        if kind == "token":
            new = draw(st.sampled_from(TOKENS))
        elif kind == "bytes":
            new = draw(st.binary(min_size=1, max_size=8))
        else:
            new = content[start:end] * 2 if kind == "twice" else b""
        content = content[:start] + new + content[end:]
    return content

"""What a run page says."""

import html
import re
import shlex


def commands_of(page: str) -> list[list[str]]:
    """The words of each command under "Reproduce", as a shell reads them."""
    found = re.search(r'<pre class="card command"><code>(.*?)</code></pre>', page, re.DOTALL)
    assert found
    return [shlex.split(line) for line in _lines(html.unescape(found[1]))]


def _lines(text: str) -> list[str]:
    """The commands of a text: a newline inside of quotes does not end one."""
    lines: list[str] = [""]
    quoted = False
    for character in text:
        quoted ^= character == "'"
        if character == "\n" and not quoted:
            lines.append("")
        else:
            lines[-1] += character
    return lines

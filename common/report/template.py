"""Rendering of pages from templates: all text is escaped, and every character of it visible."""

from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from common.io.terminal import is_visible


def render_template(name: str, *, package: str = "common", folder: str = "report", **values: Any) -> str:
    """The page that a template of `package` makes of `values`; it extends `base.html.j2`, the frame of all pages."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, folder), PackageLoader("common", "report")]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(**values)


def _visible(value: Any) -> Any:
    """A value as text in which every character shows: a control or an invisible mark appears as its code point."""
    text = str(value)
    if isinstance(value, Markup) or text.isprintable():
        return value
    return "".join(
        character if character in "\t\n\r" or is_visible(character) else f"[U+{ord(character):04X}]"
        for character in text
    )

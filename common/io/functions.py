"""User functions, by their import path."""

import importlib
from collections.abc import Callable
from typing import Any

from common.errors import UserError


def load_function(path: str, option: str) -> Callable[..., Any]:
    """The function at `module:name`. Raises UserError, which names `option`, where there is none."""
    module, separator, name = path.partition(":")
    if not separator or not name or not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{option}: {path!r} is not an import path; expected module:function")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{option}: {path} cannot be imported ({error}); is its folder in PYTHONPATH?") from error
    except (Exception, SystemExit) as error:
        what = f"{type(error).__name__}: {error}"
        raise UserError(f"{option}: {path} cannot be imported, its module raises {what}; fix that first") from error
    if not callable(found):
        raise UserError(f"{option}: {path} is not a function")
    return found

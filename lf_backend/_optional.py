"""Packages that are not required: imported where they are used, with an error that says how to get them."""

from __future__ import annotations

import importlib
from typing import Any

from lf_backend.errors import LFError


def optional(module: str, extra: str) -> Any:
    """The module, imported now.

    Args:
        module: its full name, e.g. "matplotlib.figure".
        extra: the extra of this distribution that installs it.

    Raises:
        LFError: it is not installed.
    """
    package = module.partition(".")[0]
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # installed, but something it needs is not
            raise
        raise LFError(f"{package} is not installed: python -m pip install 'lf-backend[{extra}]'") from None
    return importlib.import_module(module)

"""fairseq itself, or an error that says which distribution to install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from lf_backend.errors import LFError
from lf_backend.patching import Upstream

DISTRIBUTION = "fairseq-fixed"
OLDEST = (0, 12)
# Forks of fairseq share version numbers, so what is called inside is compared when a model is patched.
FAIRSEQ = Upstream("fairseq", tested="0.12.3.1 (the distribution fairseq-fixed)")


class FairseqError(LFError, ImportError):
    """No fairseq, or one that cannot be used."""


def fairseq() -> ModuleType:
    """The module.

    Raises:
        FairseqError: it is missing, cannot be imported, or is too old.
    """
    try:
        found = import_module("fairseq")
    except ModuleNotFoundError as error:
        if error.name != "fairseq":
            raise FairseqError(_unimportable(error)) from error
        raise FairseqError(f"fairseq: installed wanted, got none; {_install()}") from None
    except Exception as error:  # 0.12.2 raises ValueError on Python 3.11, from its dataclasses
        raise FairseqError(_unimportable(error)) from error
    check_version(getattr(found, "__version__", "0"))
    return found


def check_version(version: str) -> None:
    """Raise FairseqError for a version that is too old."""
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if numbers < OLDEST:
        raise FairseqError(f"fairseq >= {'.'.join(map(str, OLDEST))} wanted, got {version}; {_install()}")


def _unimportable(error: Exception) -> str:
    return (
        f"fairseq: one that can be imported wanted, got {type(error).__name__}: {error}; fairseq 0.12.2 "
        f"cannot from Python 3.11 on; {_install()}"
    )


def _install() -> str:
    return f"python -m pip install {DISTRIBUTION} (it is imported as fairseq)"

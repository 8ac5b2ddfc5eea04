"""What waits for a package to be imported."""

import subprocess
import sys


def run(code: str) -> None:
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_is_called_once_after_the_import_or_at_once() -> None:
    run(
        """
import sys
from lf_backend.patching import when_imported
calls = []
def then():
    calls.append("imaplib" in sys.modules)
when_imported("imaplib", then)
when_imported("imaplib", then)
assert calls == [] and "imaplib" not in sys.modules
import imaplib
assert calls == [True] and imaplib.IMAP4
when_imported("imaplib", then)
assert calls == [True, True]
"""
    )


def test_a_package_that_is_too_old_is_imported_all_the_same() -> None:
    run(
        """
import warnings
from lf_backend.patching import when_imported
def then():
    raise ImportError("no such class")
then.__module__ = "integration.register"
when_imported("imaplib", then)
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import imaplib
assert [str(x.message) for x in said] == ["integration is not registered with imaplib: no such class"]
"""
    )

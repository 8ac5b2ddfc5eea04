"""The architectures, made known to fairseq when it is imported, before this package or after.

As a `--user-dir` this package is imported by its folder's name. A copy under another name would be a second
package with the same architectures, of which fairseq keeps the first without a word, so it is refused.
"""

from __future__ import annotations

from lf_backend.errors import LFError
from lf_backend.patching import when_imported

PACKAGE = "lf_fairseq"
_HOME = "fairseq"


def check_name(name: str, path: str) -> None:
    """Raise LFError unless the package is imported by its own name."""
    if name != PACKAGE:
        raise LFError(
            f"--user-dir: the folder {PACKAGE} by its own name wanted, got {path} as {name}; its models "
            "are registered once, from one folder"
        )


def register() -> None:
    """Make the architectures known to fairseq; again is no harm.

    Raises:
        FairseqError: no fairseq that can be used.
    """
    from lf_fairseq import upstream

    upstream.fairseq()
    import lf_fairseq.archs.longformer_lm
    import lf_fairseq.archs.transformers  # noqa: F401


def when_fairseq_is_imported() -> None:
    """Register now if fairseq is loaded, else as soon as it is."""
    when_imported(_HOME, register)

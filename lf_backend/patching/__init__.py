"""Running existing models through this library: what integrations build on.

    adapter.py      what an integration implements: `Adapter`, which plans `Swap`s
    apply.py        `patch`: plans are checked, applied as a whole, or not at all
    handle.py       `Patch`: the report, and the way back
    upstream.py     comparing another package's private seams
    import_hook.py  waiting for another package to be imported

The names below are the door through which integrations come in.
"""

from lf_backend.patching.adapter import Adapter, Change, PatchMark, Patterns, Swap
from lf_backend.patching.handle import Patch, PatchedModule, Report
from lf_backend.patching.import_hook import when_imported
from lf_backend.patching.upstream import Upstream

__all__ = [
    "Adapter",
    "Change",
    "Patch",
    "PatchMark",
    "PatchedModule",
    "Patterns",
    "Report",
    "Swap",
    "Upstream",
    "when_imported",
]

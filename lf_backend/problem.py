"""A call's needs (Problem) and the place where it runs (Machine), as hashable values without tensors.

Because neither holds a tensor, a test on a laptop can ask what another machine would choose.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata

import torch


class Feature(enum.Enum):
    """Needs that a call may have of a backend. The value is the word used in reasons and tables.

    Sinks, separate projections and global rows are not here: the operator computes them once,
    above all backends.
    """

    DILATION = "dilation"
    DILATION_PER_HEAD = "dilation per head"
    UNLIMITED_REACH = "unlimited reach"
    SEVERAL_WINDOWS = "several windows"
    CROSSING_WINDOWS = "several windows whose dilations cross"
    GLOBAL_COLUMNS = "global columns"
    PREDICATE = "predicate"
    KEY_PADDING = "key padding"
    GROUPED_HEADS = "grouped heads (H > Hkv)"
    LONGER_KEYS = "more keys than queries"
    BAND_BIAS = "band bias"
    SOFTCAP = "softcap"
    DROPOUT = "dropout"
    BACKWARD = "backward"
    VALUE_WIDTH = "values of another width than keys"
    DOCUMENTS = "packed documents"

    __hash__ = object.__hash__  # members are singletons; Enum hashes the name, in Python, at every call


class Coverage(enum.Enum):
    """Pairs that are visible for sure, padding apart. The value is the word used in tables."""

    ALL = "all pairs"
    PAST = "all past pairs"
    PART = "some pairs"


@dataclass(frozen=True)
class Problem:
    """One call, without its tensors.

    Attributes:
        features: what the call needs of a backend.
        dtype: "float32", "bfloat16", "float16" or "float64".
        batch, heads, kv_heads, queries, keys, head_dim: the shape of the call.
        window: the most keys that one window shows a query, no more than there are.
        coverage: whether windows leave any pair out.
    """

    features: frozenset[Feature]
    dtype: str
    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    window: int = 0
    coverage: Coverage = Coverage.PART

    def __str__(self) -> str:
        needs = ", ".join(sorted(feature.value for feature in self.features)) or "nothing special"
        return (
            f"q [{self.batch}, {self.heads}, {self.queries}, {self.head_dim}], "
            f"k [{self.batch}, {self.kv_heads}, {self.keys}, {self.head_dim}], {self.dtype}; "
            f"needs {needs}"
        )


@dataclass(frozen=True)
class Machine:
    """The machine on which a call runs.

    Attributes:
        device: device type as in torch.device, e.g. "cpu", "cuda".
        name: what the maker calls it; for people, never compared.
        capability: CUDA compute capability, e.g. (9, 0); None elsewhere.
        packages: installed optional packages as (name, version).
    """

    device: str
    name: str = ""
    capability: tuple[int, int] | None = None
    packages: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, device: torch.device) -> Machine:
        """The machine behind a device of this process."""
        return _machine(device.type, device.index)

    def version(self, package: str) -> str | None:
        """Installed version of an optional package, None if it is missing."""
        return dict(self.packages).get(package)

    def __str__(self) -> str:
        capability = f", capability {self.capability[0]}.{self.capability[1]}" if self.capability else ""
        return f"{self.device}{f' ({self.name})' if self.name else ''}{capability}"


OPTIONAL_PACKAGES = ("triton", "xformers", "flash-attn-4", "transformers", "fairseq-fixed")


@lru_cache(maxsize=64)
def _machine(device: str, index: int | None) -> Machine:
    packages = tuple((name, found) for name in OPTIONAL_PACKAGES if (found := _version(name)))
    if device != "cuda":
        return Machine(device, packages=packages)
    properties = torch.cuda.get_device_properties(index)
    return Machine(device, properties.name, (properties.major, properties.minor), packages)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

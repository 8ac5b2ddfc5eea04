"""The order of the built-in backends where no measured call has them, with its reasons: the one table.

`measured.json` comes before it, as soon as `python -m benchmarks.select` has run on a device. What can run
everything everywhere, `blocked`, is also a threshold: a backend below it runs only by name.
"""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """A backend's place among the others.

    Attributes:
        priority: among backends that can run a call, the highest runs it.
        because: why it is there until it is measured.
    """

    priority: int
    because: str


PLACES = {
    "triton": Place(100, "a call in few kernels of its own; ahead by the model, never run on a GPU"),
    "native": Place(60, "compiled for CPUs; ahead of blocked in most of the calls measured there"),
    "blocked": Place(50, "everything on any device, by batched products over the window alone"),
    "sdpa": Place(40, "dense, so that it pays on short sequences alone; measured calls say where"),
    "flash": Place(30, "by name: never run on a GPU by us, and its backward sums by atomics"),
    "flex": Place(20, "by name: never run on a GPU, compiles at first, computes the forward twice"),
    "flex_flash": Place(15, "by name: never run on a GPU, wants another package, new in FlexAttention"),
    "xformers": Place(10, "by name: never run on a GPU, copies shared keys, its backward sums by atomics"),
    "portable": Place(5, "by name, and for exporters and transforms: slower than blocked"),
    "reference": Place(0, "by name: dense, for comparison"),
}

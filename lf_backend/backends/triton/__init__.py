"""Triton kernels for CUDA and ROCm: bands, dilation and global columns in one softmax, forward and backward.

A dilated band is a plain one in a residue class, so dilation is a stride of the loads and costs no work.
Tiles of keys that all queries of a block see run without masks.

    backend.py    what it can run
    passes.py     several windows, one after the other
    launch.py     from a call to launches
    plan.py       what shapes say of them, kept for calls of one kind
    tuning.py     sizes of tiles, as data
    forward.py    the forward kernel, and the one that joins parts
    grad_queries.py, grad_keys.py, grad_columns.py   a kernel of the backward each
    gradients.py  gradients of tiles of scores, for these
    sums.py       parts of gradients added up, and grad_out * out
    pairs.py      tiles of keys and their scores
    tiles.py      addresses, window arithmetic, hashes
    device.py     the device that kernels run on
    ahead.py      kernels compiled for devices that are not here
    assembly.py   what became of them: instructions and loops
    interpreter.py  which may be Triton's interpreter on a CPU, with bfloat16 mended
"""

from lf_backend.backends.triton.backend import Triton

__all__ = ["Triton"]

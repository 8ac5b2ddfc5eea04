"""Linear attention from blocks of queries and batched matrix products, on any device torch has.

The sequence is cut into blocks of queries. The keys a block can see through a band are one slice of
the residue class it lives in (dilation is a stride), so every product reads views of q, k and v: no
unfolded copies, nothing of size N x M. A block's scores, a few heads at a time, fit a CPU's cache.

    backend.py    the loop over strips and blocks, forward and backward
    plan.py       all the strips of a call, pass by pass
    strips.py     geometry: which queries meet which keys, under which mask; *_strips.py for each kind of pass
    arithmetic.py one block: scores, softmax, gradients

Each band is a pass, and so are the global columns, and all rules; passes are merged by their log-sum-exp.
"""

from lf_backend.backends.blocked.backend import Blocked

__all__ = ["Blocked"]

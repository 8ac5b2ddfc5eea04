"""One sequence over many devices: each rank holds a slice, and the answer is that of one device.

- `attention.py`, `explain.py`: what users call.
- `style.py`: `parallelize_module`'s way to the same.
- `group.py`: the ranks of a mesh, and the few words that they tell each other before a call.
- `sharded.py`: tensors that say themselves how they are sharded.
- `slices.py`: whose positions are whose, and who needs them.
- `documents.py`, `tokens.py`: documents and global tokens that cross slices.
- `plan.py`: what is known of a call before its tensors travel.
- `exchange.py`: the one collective that tensors travel by, and its derivative.
- `windows.py`, `parts.py`: windows over a slice, its interior while the halo is on its way, and its edges.
- `columns.py`: global tokens as keys, joined to the windows.
- `computed.py`: the answer of all these, with global tokens as queries.
- `op.py`: the same as an operator, for torch.compile.
- `pieces.py`: small softmaxes of listed queries and listed keys.

Nothing of this is loaded by `import lf_backend`.
"""

from lf_backend.distributed.attention import attention
from lf_backend.distributed.explain import Explanation, explain
from lf_backend.distributed.style import ContextParallel

__all__ = ["ContextParallel", "Explanation", "attention", "explain"]

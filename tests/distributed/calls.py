"""Calls beside those of random cases, as ranks make them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lf_backend as lf
from lf_backend import distributed

WINDOW = lf.Window(5, 3) | lf.Global(0, 17)
BLOCKS = lf.Predicate(
    lambda head, query, key: query // 16 == key // 16,
    lambda head, first, last, m: [(first // 16 * 16, (last // 16 + 1) * 16)],
)


class Crossing(TorchDispatchMode):
    """Counts the bytes that this rank gives to others, by collective, as the process group sees them."""

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        if name == "c10d::alltoall_base_":
            _, given, _, _, counts = args[:5]
            self.sent[name] += (len(given) - counts[self._rank]) * given.element_size()
        elif name == "c10d::allgather_":
            self.sent[name] += sum(x.nbytes for x in args[1]) * (self._size - 1)
        elif name.startswith("c10d::"):
            raise AssertionError(f"a collective that nobody counts: {name}")
        return func(*args, **(kwargs or {}))


def whole(length: int, heads: int = 2, kv_heads: int = 1, **how: Any) -> list[Tensor]:
    """Return q, k, v of a row."""
    draw = torch.Generator().manual_seed(3)
    return [torch.randn(1, h, length, 8, generator=draw, **how) for h in (heads, kv_heads, kv_heads)]


def parts(mesh: Any, length: int, heads: int = 2, kv_heads: int = 1, **how: Any) -> list[Tensor]:
    """Return q, k, v of this rank, of a row that is cut as evenly as it can be."""
    given = whole(length, heads, kv_heads, **how)
    return [x.tensor_split(mesh.size(), 2)[mesh.get_local_rank()].requires_grad_() for x in given]


def counted(mesh: Any, length: int, pattern: Any, documents: bool) -> tuple[dict[str, int], int, int]:
    """Return the bytes sent by collective, and what `explain` says of forward and backward."""
    pattern = BLOCKS if pattern is None else pattern
    q, k, v = parts(mesh, length)
    options: Any = {"key_padding": torch.zeros(1, q.shape[2], dtype=torch.bool)}
    if documents:
        options["documents"] = torch.zeros(1, q.shape[2], dtype=torch.int64)
    told = distributed.explain(q, k, v, pattern, mesh=mesh, **options)
    with Crossing(mesh.get_group()) as crossing:
        out = distributed.attention(q, k, v, pattern, mesh=mesh, **options)
        out.sum().backward()
    rank = mesh.get_local_rank()
    return dict(crossing.sent), told.forward_sent[rank], told.backward_sent[rank]


def different(mesh: Any, odd: dict[str, Any]) -> None:
    """Call with something else on the last rank."""
    last = mesh.get_local_rank() == mesh.size() - 1
    shape = {"heads": 2, "kv_heads": 1, "dtype": torch.float32} | {
        name: odd[name] for name in ("heads", "kv_heads", "dtype") if last and name in odd
    }
    q, k, v = parts(mesh, 24, **shape)
    options = odd.get("options", {}) if last else {}
    pattern = odd["pattern"] if last and "pattern" in odd else WINDOW
    distributed.attention(q, k, v, pattern, mesh=mesh, **options)


def dies(mesh: Any) -> None:
    """Leave before a collective that the others enter."""
    if mesh.get_local_rank() == mesh.size() - 1:
        raise SystemExit
    q, k, v = parts(mesh, 24)
    distributed.attention(q, k, v, WINDOW, mesh=mesh)


def stays_away(mesh: Any) -> None:
    """Let the others wait for a backward that this rank never does."""
    q, k, v = parts(mesh, 24)
    out = distributed.attention(q, k, v, WINDOW, mesh=mesh)
    if mesh.get_local_rank():
        out.sum().backward()


def of_one_process(length: int, **options: Any) -> tuple[Tensor, list[Tensor]]:
    """Return the output and gradients that one process has."""
    given = [x.requires_grad_() for x in whole(length)]
    out = lf.attention(*given, pattern=WINDOW, **options)
    return out.detach(), list(torch.autograd.grad(out.float().square().sum(), given))


def recomputed(mesh: Any) -> list[Tensor]:
    """Return output and gradients of a call whose backward computes it again, with dropout."""
    given = parts(mesh, 40)
    torch.manual_seed(5)

    def call(*given: Tensor) -> Tensor:
        return distributed.attention(*given, pattern=WINDOW, mesh=mesh, dropout_p=0.2)

    out = checkpoint(call, *given, use_reentrant=False)
    return [out.detach(), *torch.autograd.grad(out.square().sum(), given)]


def halved(mesh: Any) -> list[Tensor]:
    """Return output and gradients under autocast."""
    given = parts(mesh, 40)
    with torch.autocast("cpu", torch.bfloat16):
        out = distributed.attention(*given, pattern=WINDOW, mesh=mesh)
    return [out.detach(), *torch.autograd.grad(out.float().square().sum(), given)]


def compiled(mesh: Any, backend: str, pattern: Any, options: dict[str, Any]) -> list[Tensor]:
    """Return output, log-sum-exp and gradients of a compiled function around the call, of one graph."""
    given = parts(mesh, 40)
    torch._dynamo.reset()

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = distributed.attention(q * 2, k, v, pattern, mesh=mesh, return_lse=True, **options)
        return out * 3, lse

    out, lse = torch.compile(call, backend=backend, fullgraph=True)(*given)
    grads = torch.autograd.grad(out.square().sum() + lse.sum(), given)
    return [out.detach(), lse.detach(), *grads]


def everything(length: int, first: int = 0, end: int | None = None) -> dict[str, Any]:
    """Return a call with everything that it may have, of the positions first .. end - 1 of a row."""
    draw = torch.Generator().manual_seed(9)
    rows = {"q": 2, "k": 1, "v": 1, "global_q": 2, "global_k": 1, "global_v": 1}
    found: dict[str, Any] = {n: torch.randn(1, h, length, 8, generator=draw) for n, h in rows.items()}
    found["band_bias"] = torch.randn(1, 2, length, 9, generator=draw)
    found = {name: x[:, :, first:end].clone().requires_grad_() for name, x in found.items()}
    at = torch.arange(length)[None, first:end]
    found["sinks"] = torch.randn(2, generator=draw).requires_grad_()
    found |= {"key_padding": at > length - 4, "global_mask": at % 11 == 3, "documents": at // 15}
    return found | {"pattern": "window(5, 3)", "softcap": 3.0, "dropout_p": 0.2}


def of(given: dict[str, Any], attention: Any) -> list[Tensor]:
    """Return out and gradients of a call with everything."""
    torch.manual_seed(5)
    out = attention(**given)
    leaves = [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out.square().sum(), leaves)]


def compiled_with_everything(mesh: Any, recomputed: bool) -> list[Tensor]:
    """Return out and gradients of calls of two lengths in one graph each, with autocast's casts."""
    torch._dynamo.reset()

    def call(**given: Any) -> Tensor:
        return distributed.attention(**given, mesh=mesh)

    def again(**given: Any) -> Any:
        return checkpoint(call, **given, use_reentrant=False)

    function = torch.compile(again if recomputed else call, backend="aot_eager", fullgraph=True)
    found = []
    for length in (40, 57, 70):
        cuts = [length * rank // mesh.size() for rank in range(mesh.size() + 1)]
        rank = mesh.get_local_rank()
        found += of(everything(length, cuts[rank], cuts[rank + 1]), function)
    return found


def in_graph(call: Any, compiled: bool) -> Any:
    """Return a call compiled into one graph, if it is to be."""
    torch._dynamo.reset()
    return torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call


def as_dtensors(mesh: Any, compiled: bool) -> list[Tensor]:
    """Return output and gradients, whole, of DTensors that are sharded along the row."""

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return distributed.attention(q, k, v, WINDOW, mesh=mesh)

    given = [distribute_tensor(x, mesh, [Shard(2)]).requires_grad_() for x in whole(40)]
    out = in_graph(call, compiled)(*given)
    assert isinstance(out, DTensor) and tuple(out.placements) == (Shard(2),) and out.shape[2] == 40
    grads = torch.autograd.grad(out.to_local().square().sum(), given)
    return [x.full_tensor().detach() for x in (out, *grads)]


class Inner(torch.nn.Module):
    """Attention as models keep it apart from their projections."""

    def forward(self, q: Tensor, k: Tensor, *, value: Tensor) -> Tensor:
        return lf.attention(q, k, value, WINDOW)


def styled(mesh: Any, compiled: bool) -> list[Tensor]:
    """Return output and gradients of a module that `parallelize_module` has taken."""
    given = parts(mesh, 40)
    module = parallelize_module(Inner(), mesh, distributed.ContextParallel())
    out = in_graph(module, compiled)(*given[:2], value=given[2])
    assert type(out) is Tensor
    return [out.detach(), *torch.autograd.grad(out.square().sum(), given)]


def far(mesh: Any, documents: bool) -> None:
    """Call with a rule by which all see the first positions."""
    prefix = lf.Predicate(lambda head, query, key: key < 9, lambda head, first, last, m: [(0, 9)])
    q, k, v = parts(mesh, 4000)
    ids = torch.zeros(1, q.shape[2], dtype=torch.int64) if documents else None
    distributed.attention(q, k, v, prefix, mesh=mesh, documents=ids)


def misplaced(mesh: Any) -> None:
    """Call with heads that are sharded in place of positions."""
    given = [DTensor.from_local(x, mesh, [Shard(1)], run_check=False) for x in parts(mesh, 40)]
    distributed.attention(*given, pattern=WINDOW, mesh=mesh)


def of_one_backend(mesh: Any) -> None:
    """Ask for a backend that cannot run the slice of the first rank, the only one with tokens."""
    sizes = [40, *[0] * (mesh.size() - 1)]
    q, k, v = (x.split(sizes, 2)[mesh.get_local_rank()] for x in whole(40))
    distributed.attention(q, k, v, WINDOW, mesh=mesh, backend="flash")


def elsewhere(mesh: Any) -> None:
    """Call with tensors that are not where the mesh is."""
    q, k, v = (x.to("meta") for x in parts(mesh, 40))
    distributed.attention(q, k, v, WINDOW, mesh=mesh)


def transformed(mesh: Any) -> None:
    """Differentiate by torch.func."""
    q, k, v = parts(mesh, 40)
    torch.func.grad(lambda x: distributed.attention(x, k, v, WINDOW, mesh=mesh).sum())(q)


def compiled_without_a_dimension(mesh: Any) -> None:
    """Compile a call that cannot be."""
    torch._dynamo.reset()
    q, k, v = parts(mesh, 40)

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return distributed.attention(q, k, v, WINDOW, mesh=mesh)

    torch.compile(call, backend="aot_eager")(q[0] if mesh.get_local_rank() else q, k, v)


def twice(mesh: Any) -> list[Tensor]:
    """Return gradients of two backwards of one call, and of two calls, of slices with an interior."""
    with_interior = parts(mesh, 400)
    torch.use_deterministic_algorithms(True)
    try:
        outs = [distributed.attention(*with_interior, pattern=WINDOW, mesh=mesh) for _ in range(2)]
        losses = [outs[0].square().sum(), outs[0].square().sum(), outs[1].square().sum()]
        return [x for loss in losses for x in torch.autograd.grad(loss, with_interior, retain_graph=True)]
    finally:
        torch.use_deterministic_algorithms(False)


def written_to(mesh: Any, pattern: Any) -> None:
    """Write to an output that a backward needs as it was."""
    given = parts(mesh, 40)
    out = distributed.attention(*given, pattern=pattern, mesh=mesh)
    out.mul_(2).sum().backward()

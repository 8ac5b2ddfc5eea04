"""What a call moves on a GPU: kernels of Triton's and of torch's, their bytes, and waits for the device.

Launches do nothing, and tensors are those of a CPU, but the path is that of a GPU. A launch is taken to move
each of its tensors once, and of whole tensors of which it needs a few rows nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import lf_backend as lf
from lf_backend.api import checked_arguments
from lf_backend.backends.triton import devices, plan
from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Tiles, Wanted
from lf_backend.ops import around_backend
from lf_backend.ops.arguments import Arguments
from lf_backend.ops.global_tokens import with_positions

BATCH, HEADS, LENGTH, DIM = 4, 12, 4096, 64
WINDOW = lf.Window(256, 256)
TENSOR = 2 * BATCH * HEADS * LENGTH * DIM / 1e6  # megabytes of q in bfloat16
_FREE = ("empty", "new_empty", "detach", "lift_fresh", "alias")  # allocations and views
_FEW = {  # whole tensors of which a kernel needs a few rows
    "grad_columns": ("k", "v"),
    "sum_parts": ("to", "other_to"),
    "combine": ("out", "lse"),
    "listed": ("q", "out", "grad_out", "grad_q", "lse", "delta"),
}


class Moved(NamedTuple):
    """What one pass moves.

    Attributes:
        launches: names of Triton's kernels.
        torch: names of torch's.
        megabytes: bytes of torch's kernels, and those of Triton's.
        waits: how often the host waits for the device.
    """

    launches: list[str]
    torch: list[str]
    megabytes: tuple[float, float]
    waits: int


@dataclass(frozen=True)
class Idle(Device):
    """An H100 on which nothing runs."""

    launched: list[tuple[str, float]] = field(default_factory=list)
    sized: list[Wanted] = field(default_factory=list)

    def tiles(self, wanted: Wanted) -> Tiles:
        self.sized.append(wanted)
        return super().tiles(wanted)

    def launch(self, kernel: Any, grid: tuple[int, int], size: Tiles, **arguments: Any) -> None:
        name = kernel.fn.__name__
        few = (
            _FEW.get(name, ()) if arguments.get("positions") is None else _FEW["listed"] + _FEW.get(name, ())
        )
        self.launched.append((name, _bytes(arguments, few)))


class Watch(TorchDispatchMode):
    """Notes what torch computes, and when it looks at data."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: list[tuple[str, float]] = []
        self.waits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero"):
            self.waits += 1
        elif not func.is_view and not name.startswith(_FREE):
            tensors = {x.data_ptr(): x for x in _tensors((args, found))}
            self.kernels.append((name, sum(x.nbytes for x in tensors.values()) / 1e6))
        return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Idle:
    device = Idle(90, 132, None)
    monkeypatch.setattr(devices, "of", lambda _: device)
    monkeypatch.setattr(around_backend, "simplified", around_backend.lifted)  # which looks, on a CPU
    return device


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)


def _bytes(arguments: dict[str, Any], few: tuple[str, ...]) -> float:
    """Megabytes of the tensors of a launch, without those of which it needs a few rows."""
    whole = [value for name, value in arguments.items() if name not in few]
    return sum({x.data_ptr(): x.nbytes for x in _tensors(whole)}.values()) / 1e6


def _call(pattern: lf.Pattern, separate: bool = False, **options: Any) -> Arguments:
    shape = BATCH, HEADS, LENGTH, DIM
    q, k, v, *own = (torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(6))
    if separate:
        options.update(zip(("global_q", "global_k", "global_v"), own, strict=True))
    return checked_arguments(q, k, v, pattern, {**options, "backend": "triton"})


def _passes(a: Arguments, device: Idle) -> tuple[Moved, Moved]:
    """What forward and backward move, as eager autograd runs them."""
    with torch.no_grad():
        device.launched.clear()
        with Watch() as watch:
            a = with_positions(a)
            out, lse = around_backend.forward(a)
        forward = _moved(watch, device)
        grad_out = torch.zeros_like(out)
        with Watch() as watch:
            around_backend.backward(a, grad_out, None, out, lse)
        return forward, _moved(watch, device)


def _moved(watch: Watch, device: Idle) -> Moved:
    launched = device.launched.copy()
    device.launched.clear()
    megabytes = sum(size for _, size in watch.kernels), sum(size for _, size in launched)
    names = [name for name, _ in launched], [name for name, _ in watch.kernels]
    return Moved(*names, megabytes, watch.waits)


def _padding() -> Tensor:
    return (torch.arange(LENGTH) >= LENGTH - 100).repeat(BATCH, 1)


def _mask() -> Tensor:
    return (torch.arange(LENGTH) == 0).repeat(BATCH, 1)


def test_a_window_is_one_kernel_and_three(gpu: Idle) -> None:
    """No kernel of torch's; one of the three finds delta, and each tensor is read where it is needed."""
    forward, backward = _passes(_call(WINDOW), gpu)
    assert forward == Moved(["forward"], [], forward.megabytes, 0)
    assert backward == Moved(["deltas", "grad_queries", "grad_keys"], [], backward.megabytes, 0)
    assert forward.megabytes[1] < 4.2 * TENSOR and backward.megabytes[1] < 13.4 * TENSOR


def test_padding_moves_no_tensor(gpu: Idle) -> None:
    """What is made of the mask is small, and made once for all layers and their backward."""
    padding = _padding()
    first, backward = _passes(_call(WINDOW, key_padding=padding), gpu)
    assert first.launches == ["forward"] and first.megabytes[0] < 2 and first.waits == 0
    assert backward.torch == []
    second, _ = _passes(_call(WINDOW, key_padding=padding), gpu)
    assert second.torch == []


def test_global_tokens_of_a_pattern(gpu: Idle) -> None:
    forward, backward = _passes(_call(WINDOW | lf.Global(0)), gpu)
    assert forward.launches == ["forward", "forward", "combine"] and forward.waits == 0
    assert backward.launches[3:] == ["sum_parts", "grad_keys", "sum_parts"] and backward.waits == 0
    again = _passes(_call(WINDOW | lf.Global(0)), gpu)
    assert again[0].torch == again[1].torch == [], "its positions and rows are the same for ever"


def test_hugging_face(gpu: Idle) -> None:
    """Padding, a global mask, separate projections: what its Longformer asks of every layer."""
    masks = {"key_padding": _padding(), "global_mask": _mask()}
    first, _ = _passes(_call(WINDOW, True, **masks), gpu)
    assert first.waits == 1, "the tokens of the mask are counted"
    forward, backward = _passes(_call(WINDOW, True, **masks), gpu)
    assert forward.launches == ["forward", "forward", "combine"] and forward.torch == []
    own = ["deltas", "grad_queries", "grad_keys", "sum_parts"]
    assert backward.launches == [*own, "grad_keys", "sum_parts"], (
        "of the window, and of the global token's row"
    )
    assert backward.torch == ["zeros"], "the gradient of global_q, of which most is 0"
    assert forward.waits == backward.waits == 0
    assert forward.megabytes[1] < 6.1 * TENSOR and sum(backward.megabytes) < 18.5 * TENSOR


def test_many_global_tokens_have_kernels_of_their_own(gpu: Idle) -> None:
    """Parts of their gradients would weigh more than what is read twice."""
    positions = torch.arange(0, 20 * 64, 64).repeat(BATCH, 1)
    forward, backward = _passes(_call(WINDOW, True, global_positions=positions), gpu)
    own = ["deltas", "grad_queries", "grad_keys", "grad_columns", "sum_parts"]
    assert backward.launches[:5] == own and backward.launches[5] == "grad_queries"
    assert forward.waits == backward.waits == 0


def test_positions_of_global_tokens_are_never_waited_for(gpu: Idle) -> None:
    positions = torch.tensor([[0, 7, -1]]).repeat(BATCH, 1)
    for one in _passes(_call(WINDOW, True, global_positions=positions, key_padding=_padding()), gpu):
        assert one.waits == 0


@pytest.mark.parametrize("pattern", [WINDOW, WINDOW | lf.Global(0)], ids=str)
def test_a_second_call_of_its_kind_plans_nothing(gpu: Idle, pattern: lf.Pattern) -> None:
    """Forward and backward, with other tensors of other strides, and another scale."""
    _passes(_call(pattern), gpu)
    planned, sized = dict(gpu.plans), len(gpu.sized)
    assert planned and sized
    transposed = torch.zeros(BATCH, LENGTH, HEADS, DIM, dtype=torch.bfloat16).transpose(1, 2)
    _passes(replace(_call(pattern, scale=0.3), q=transposed, v=transposed), gpu)
    assert gpu.plans == planned and len(gpu.sized) == sized


@pytest.mark.parametrize(
    "options", [{"softcap": 2.0}, {"scale": -1.0}, {"dropout_p": 0.1}, {"key_padding": None}], ids=str
)
def test_another_kind_has_a_plan_of_its_own(gpu: Idle, options: dict[str, Any]) -> None:
    if "key_padding" in options:
        options = {"key_padding": _padding()}
    _passes(_call(WINDOW), gpu)
    planned = len(gpu.plans)
    _passes(_call(WINDOW, **options), gpu)
    assert len(gpu.plans) == planned + 1


@pytest.mark.parametrize(
    ("heads", "kv_heads", "batch", "shares"), [(12, 1, 1, 4), (12, 1, 4, 1), (8, 8, 1, 1)]
)
def test_few_key_heads_share_their_gradients_among_programs(
    gpu: Idle, heads: int, kv_heads: int, batch: int, shares: int
) -> None:
    """Of 132 processors, each has two programs, or those that there are; the shares are summed in order."""
    q, k = (torch.zeros(batch, some, LENGTH, DIM, dtype=torch.bfloat16) for some in (heads, kv_heads))
    q.requires_grad_()
    _, backward = _passes(checked_arguments(q, k, k, WINDOW, {"backend": "triton"}), gpu)
    (planned,) = gpu.plans.values()
    assert planned.grad_keys.parts == shares
    assert planned.grad_keys.arguments["group"] == heads // kv_heads // shares
    assert planned.grad_keys.grid == (LENGTH // planned.grad_keys.size.keys * kv_heads * shares * batch, 1)
    assert backward.torch == ["sum", "_to_copy"] * 2 * (shares > 1)


def test_a_device_keeps_so_many_plans(gpu: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "MOST_PLANS", 2)
    for reach in range(4):
        _passes(_call(lf.Window(reach, 0)), gpu)
        assert 1 <= len(gpu.plans) <= 2


def test_work_of_the_host_before_the_first_launch(gpu: Idle) -> None:
    """In inference, from the second call of a kind on, counted in functions written in Python."""
    x = torch.zeros(1, HEADS, LENGTH, DIM, dtype=torch.bfloat16)
    called: list[str] = []
    for _ in range(2):
        called.clear()
        with torch.inference_mode():
            sys.setprofile(lambda frame, event, _: event == "call" and called.append(frame.f_code.co_name))
            lf.attention(x, x, x, WINDOW, backend="triton")
            sys.setprofile(None)
    assert called.index("launch") <= 45, "about 0.3 microseconds each"


def test_a_mask_that_was_written_to_is_looked_at_again(gpu: Idle) -> None:
    mask, padding = _mask(), _padding()
    _passes(_call(WINDOW, global_mask=mask, key_padding=padding), gpu)
    padding[:, -200:] = True
    mask[:, 1] = True
    forward, _ = _passes(_call(WINDOW, global_mask=mask, key_padding=padding), gpu)
    assert forward.waits == 1 and "cumsum" in forward.torch and "argmax" in forward.torch

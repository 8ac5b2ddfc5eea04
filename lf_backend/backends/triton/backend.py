"""The Triton backend's face to the registry; triton is imported when it computes."""

from __future__ import annotations

import os

from torch import Tensor

from lf_backend.backend import Backend, Call, Capabilities, Gradients
from lf_backend.problem import Feature, Machine, Problem

MOST_PROGRAMS = 2**31 - 1  # of a grid's first axis
WIDEST_FLOAT32 = 128  # head dimension; beyond, no tile leaves registers enough
OLDEST = (8, 0)  # compute capability: bfloat16 products, asynchronous copies


class Triton(Backend):
    """See the package."""

    name = "triton"
    capabilities = Capabilities(
        features=frozenset(Feature) - {Feature.PREDICATE, Feature.CROSSING_WINDOWS, Feature.VALUE_WIDTH},
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        devices=frozenset({"cpu", "cuda"}),
        max_head_dim=256,
        packages=("triton",),
        rows_in_place=True,
        skips_padding=True,
        clears_padding=True,
    )

    def reasons(self, problem: Problem, machine: Machine) -> list[str]:
        found = super().reasons(problem, machine)
        if machine.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
            found.append("on a CPU TRITON_INTERPRET=1 wanted (Triton's interpreter, for tests)")
        if machine.capability is not None and machine.capability < OLDEST:
            wanted, got = (".".join(map(str, found)) for found in (OLDEST, machine.capability))
            found.append(f"compute capability >= {wanted} wanted, device has {got}")
        if problem.dtype == "float32" and problem.head_dim > WIDEST_FLOAT32:
            wide = f"head_dim <= {WIDEST_FLOAT32} in float32 wanted (registers), call has {problem.head_dim}"
            found.append(wide)
        rows = problem.batch * problem.heads * max(problem.queries, problem.keys)
        if rows > MOST_PROGRAMS:
            found.append(f"batch * heads * length <= {MOST_PROGRAMS} wanted, call has {rows}")
        return found

    def forward(self, call: Call) -> tuple[Tensor, Tensor]:
        from lf_backend.backends.triton import devices, passes

        return passes.forward(call, devices.of(call.q.device))

    def deltas(
        self, grad_out: Tensor, out: Tensor, lse: Tensor, idle: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        from lf_backend.backends.triton import devices, launch

        return launch.deltas(grad_out, out, lse, idle, devices.of(out.device))

    def backward(
        self, call: Call, grad_out: Tensor, out: Tensor | None, delta: Tensor, lse: Tensor
    ) -> Gradients:
        from lf_backend.backends.triton import devices, passes

        return passes.backward(call, devices.of(call.q.device), grad_out, delta, lse)

    def forward_rows(self, call: Call, out: Tensor, lse: Tensor) -> None:
        from lf_backend.backends.triton import devices, launch

        launch.forward(call, devices.of(call.q.device), (out, lse))

    def backward_rows(
        self, call: Call, grad_out: Tensor, delta: Tensor, lse: Tensor, into: Gradients | None
    ) -> Gradients:
        from lf_backend.backends.triton import devices, launch

        return launch.backward(call, devices.of(call.q.device), grad_out, delta, lse, into)

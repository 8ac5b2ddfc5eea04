"""Four processes over gloo that live as long as a module's tests, and run jobs on the first few of them."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lf_backend import LFError

SIZE = 4
TIMEOUT = timedelta(seconds=60)  # of a collective that somebody does not come to
Job = Callable[..., Any]


class Ranks:
    """Processes of one group; `run` has the first `size` of them run a job."""

    def __init__(
        self,
        store: Path,
        size: int = SIZE,
        timeout: timedelta = TIMEOUT,
        preload: str = "tests.distributed.preload",
    ) -> None:
        context = get_context("forkserver")  # imports once for all
        context.set_forkserver_preload([preload])
        pipes = [context.Pipe() for _ in range(size)]
        self._ends = [own for own, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, size, str(store), timeout, other), daemon=True)
            for rank, (_, other) in enumerate(pipes)
        ]
        for process, (_, other) in zip(self._processes, pipes, strict=True):
            process.start()
            other.close()  # so that a process that leaves closes its pipe

    def run(self, size: int, job: Job, *arguments: Any) -> list[Any]:
        """Return what `job(mesh, *arguments)` returns or raises on each of the first `size` ranks."""
        for end in self._ends[:size]:
            end.send((size, job, arguments))
        return [_answer(end) for end in self._ends[:size]]

    def close(self) -> None:
        """End all processes."""
        for process in self._processes:
            process.kill()
            process.join()


def _answer(end: Connection) -> Any:
    try:
        return end.recv()
    except (EOFError, ConnectionResetError):
        return None  # a rank that has left


def _serve(rank: int, size: int, store: str, timeout: timedelta, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timeout
    )
    dist.barrier()  # a rank that leaves at once would leave others that still look for it
    meshes = [dist.DeviceMesh("cpu", list(range(count))) for count in range(1, size + 1)]
    while True:
        count, job, arguments = pipe.recv()
        try:
            found = job(meshes[count - 1], *arguments)
        except LFError as error:
            found = type(error)(str(error))
        except Exception:  # whatever a job does wrong, said by the rank that called it
            found = RuntimeError(traceback.format_exc())
        pipe.send(found)

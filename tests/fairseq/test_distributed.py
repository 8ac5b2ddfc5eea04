"""Two processes, by fairseq's distributed training on gloo, train as one does on their batches together."""

import multiprocessing
import socket

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu

from tests.fairseq.commands import TINY, USER_DIR, binarised, run, sizes, train_on_cpus, words

ARGUMENTS = [
    *words(
        "--task language_modeling --arch transformer_lm_lf --tokens-per-sample 64 --sample-break-mode none"
    ),
    *["--user-dir", USER_DIR, "--attention-pattern", "window(7, 0) | global(0)", *sizes("decoder"), *TINY],
    *words("--max-update 3 --dropout 0 --disable-validation"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data, and with what one process makes of two batches at a time."""
    folder = tmp_path_factory.mktemp("distributed")
    data = binarised(folder)
    run("train", data, *ARGUMENTS, "--update-freq", "2", "--save-dir", folder / "one")
    return folder


@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp"])
def test_two_processes_are_one(trained, backend):
    """fairseq starts processes for GPUs alone; on CPUs each is started by hand, with its rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    distributed = words(
        f"--distributed-world-size 2 --distributed-init-method tcp://localhost:{port} --distributed-no-spawn "
        f"--distributed-backend gloo --ddp-backend {backend}"
    )
    arguments = [
        trained / "bin",
        *ARGUMENTS,
        *distributed,
        "--save-dir",
        trained / backend,
        "--distributed-rank",
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fairseq_cli.train", "lf_fairseq"])
    processes = [context.Process(target=train_on_cpus, args=([*arguments, rank],)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode == 0
    one, two = (
        load_checkpoint_to_cpu(str(trained / name / "checkpoint_last.pt")) for name in ("one", backend)
    )
    assert two["cfg"]["distributed_training"]["distributed_world_size"] == 2
    for name, wanted in one["model"].items():
        torch.testing.assert_close(two["model"][name], wanted, rtol=1e-4, atol=1e-5)

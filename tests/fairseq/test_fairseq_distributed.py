"""Two processes, by fairseq's distributed training on gloo, train as one does on their batches together."""

import os
import socket
import subprocess
import sys

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu
from fairseq_commands import TINY, USER_DIR, binarised, run, sizes, words

ARGUMENTS = [
    *words(
        "--task language_modeling --arch transformer_lm_lf --tokens-per-sample 64 --sample-break-mode none"
    ),
    *["--user-dir", USER_DIR, "--attention-pattern", "window(7, 0) | global(0)", *sizes("decoder"), *TINY],
    *words("--max-update 3 --dropout 0 --disable-validation"),
]


# fairseq hands device 0 to torch's DistributedDataParallel, which takes none for a model on a CPU.
TRAIN = """
from fairseq.models import distributed_fairseq_model as wrapped
from fairseq_cli.train import cli_main

ddp = wrapped.DistributedDataParallel
wrapped.DistributedDataParallel = lambda *args, device_ids, output_device, **kwargs: ddp(*args, **kwargs)
cli_main()
"""


def launch(data, folder, backend):
    """fairseq starts processes for GPUs alone; on CPUs each is started by hand, with its rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    distributed = words(
        f"--distributed-world-size 2 --distributed-init-method tcp://localhost:{port} --distributed-no-spawn "
        f"--distributed-backend gloo --ddp-backend {backend}"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    arguments = [str(text) for text in (data, *ARGUMENTS, *distributed, "--save-dir", folder)]
    command = [sys.executable, "-W", "ignore", "-c", TRAIN, *arguments, "--distributed-rank"]
    return [
        subprocess.Popen(
            [*command, str(rank)], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("backend", ["legacy_ddp", "pytorch_ddp"])
def test_two_processes_are_one(tmp_path, backend):
    data = binarised(tmp_path)
    processes = launch(data, tmp_path / "two", backend)
    run("train", data, *ARGUMENTS, "--update-freq", "2", "--save-dir", tmp_path / "one")
    for process in processes:
        log, _ = process.communicate(timeout=300)
        assert process.returncode == 0, log[-3000:]
    one, two = (
        load_checkpoint_to_cpu(str(tmp_path / name / "checkpoint_last.pt")) for name in ("one", "two")
    )
    assert two["cfg"]["distributed_training"]["distributed_world_size"] == 2
    for name, wanted in one["model"].items():
        torch.testing.assert_close(two["model"][name], wanted, rtol=1e-4, atol=1e-5)

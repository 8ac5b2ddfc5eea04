"""transformers' Trainer over ranks that share sequences.

    arguments = TrainingArguments(..., parallelism_config=ParallelismConfig(cp_size=2))
    ContextParallelTrainer(model, arguments, train_dataset=data).train()

accelerate's configuration says which ranks share sequences, and its data loaders give these the same batches.
What accelerate does itself for them, dropping masks and gathering all keys, is left out. With FSDP2 gradients
are averaged by it, and otherwise here, over all processes, in place of DistributedDataParallel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import transformers
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from lf_backend.distributed.group import Group
from lf_backend.errors import PatchError, UnsupportedError
from lf_huggingface.parallel import gradients
from lf_huggingface.parallel.context import ContextParallel, context_parallel


class ContextParallelMixin:
    """Make a Trainer of one's own share sequences; it stands before `transformers.Trainer` in the bases.

    Raises:
        UnsupportedError: label smoothing or a loss function of one's own, which would see slices;
            `eval_use_gather_object`.
    """

    heads: Literal["slices", "whole"] = "slices"  # see `context_parallel`
    accelerator: Any
    args: Any
    model: Any
    _shared: ContextParallel | None = None
    _everyone: Group | None = None

    @property
    def cp_size(self) -> int:
        """How many ranks share a sequence."""
        config = getattr(self.accelerator, "parallelism_config", None)
        return 1 if config is None else int(config.cp_size)

    def create_accelerator_and_postprocess(self) -> None:
        """See Trainer; accelerate's own context parallel is left out."""
        config = self.args.parallelism_config
        if config is not None and self.args.device.type == "cpu":
            config._validate_accelerator = partial(_validated, config._validate_accelerator)
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        if self.cp_size == 1:
            return
        given = getattr(self, "compute_loss_func", None)
        if given is not None or self.args.label_smoothing_factor:
            what = "compute_loss_func" if given is not None else "label_smoothing_factor"
            raise UnsupportedError(f"{what}: none wanted over ranks, whose labels are slices, got one")
        if self.args.eval_use_gather_object:
            raise UnsupportedError("eval_use_gather_object: False wanted over ranks, got True")
        accelerator = self.accelerator
        accelerator._prepare_cp = lambda *args: args
        everyone = accelerator.gather_for_metrics
        accelerator.gather_for_metrics = partial(_gathered, everyone, accelerator, self.cp_size)
        self.gather_function = accelerator.gather_for_metrics
        if not accelerator.is_fsdp2:  # `evaluation_mode` leaves the wrapping out and nothing else
            accelerator.prepare_model = partial(accelerator.prepare_model, evaluation_mode=True)
            world = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
            self._everyone = Group.of(world)

    def _prepare_context_parallel_inputs(self, model: Any, inputs: Any) -> tuple[Callable[[], Any], Any]:
        if self.cp_size == 1:
            found: tuple[Callable[[], Any], Any] = super()._prepare_context_parallel_inputs(model, inputs)  # type: ignore[misc]
            return found
        return nullcontext, inputs

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
        **more: Any,
    ) -> Any:
        """See Trainer: of this rank's slices. Outputs have all tokens, and every rank the same loss."""
        if self.cp_size == 1:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch, **more)  # type: ignore[misc]
        cp = self._sharing(model)
        given = cp.shard(inputs)
        loss, outputs = super().compute_loss(model, given, True, num_items_in_batch, **more)  # type: ignore[misc]
        scaled = num_items_in_batch is not None and self.args.average_tokens_across_devices
        if scaled and getattr(self, "model_accepts_loss_kwargs", False):
            loss = loss / self.cp_size  # Trainer takes it for the loss of a slice
        return (loss, cp.gather(outputs)) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """See Trainer; gradients are averaged at the last batch of an update."""
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if self._everyone is not None and self._shared is not None and self.accelerator.sync_gradients:
            gradients.average(self._everyone, self._shared.parameters)
            self._shared.note_averaged()
        return loss

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """See Trainer."""
        with self.sharing(None):
            return super().train(*args, **kwargs)  # type: ignore[misc]

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """See Trainer."""
        with self.sharing(None):
            return super().evaluate(*args, **kwargs)  # type: ignore[misc]

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """See Trainer."""
        with self.sharing(None):
            return super().predict(*args, **kwargs)  # type: ignore[misc]

    def _sharing(self, model: Any) -> ContextParallel:
        if self._shared is None:
            if any(isinstance(x, DistributedDataParallel) for x in model.modules()):
                raise PatchError("model: one that nobody has wrapped wanted, got DistributedDataParallel")
            mesh = self.accelerator.torch_device_mesh["cp"]
            self._shared = context_parallel(model, mesh, heads=self.heads)
        return self._shared

    @contextmanager
    def sharing(self, model: Any) -> Iterator[None]:
        """Share a model's sequences inside, from the first loss on, or at once if it is given; not after."""
        before = self._shared
        if model is not None and self.cp_size > 1:
            self._sharing(model)
        try:
            yield
        finally:
            if before is None and self._shared is not None:
                self._shared.undo()
                self._shared = None


class ContextParallelTrainer(ContextParallelMixin, transformers.Trainer):
    """transformers' Trainer, over ranks if `args.parallelism_config` has a `cp_size` above 1.

    The losses are those of a Trainer in one process with the same batches.
    """


def _gathered(
    gather_for_metrics: Callable[..., Any],
    accelerator: Any,
    cp_size: int,
    data: Any,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Gather from one rank of each that share a sequence: the others have the same."""
    gather = accelerator.gather
    accelerator.gather = lambda x: _once(gather(x), accelerator.num_processes, cp_size)
    try:
        return gather_for_metrics(data, *args, **kwargs)
    finally:
        accelerator.gather = gather


class _OfSeveralDevices:
    """An accelerator that says of processes on a CPU what it says of those on GPUs."""

    multi_device = True

    def __init__(self, accelerator: Any) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def _validated(validate: Callable[[Any], None], accelerator: Any) -> None:
    """Check a configuration by all of accelerate's rules but that it is not for a CPU."""
    validate(_OfSeveralDevices(accelerator))


def _once(x: Any, processes: int, cp_size: int) -> Any:
    if isinstance(x, dict):
        return {name: _once(part, processes, cp_size) for name, part in x.items()}
    if isinstance(x, tuple | list):
        return type(x)(_once(part, processes, cp_size) for part in x)
    return x.reshape(processes, -1, *x.shape[1:])[::cp_size].flatten(0, 1) if isinstance(x, Tensor) else x

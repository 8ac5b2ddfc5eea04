"""A model of transformers whose sequences are shared by ranks.

    with lf_huggingface.context_parallel(model, mesh["cp"]) as cp:
        loss = model(**cp.shard(batch)).loss
        loss.backward()
        cp.average_gradients()

Of the model only hooks are used, and a note on its layers: its classes and parameters stay as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from lf_backend.distributed.group import Group
from lf_backend.errors import ArgumentError, PatchError, UnsupportedError
from lf_huggingface.interface.ranks import Ranks, ranks_of, set_ranks
from lf_huggingface.parallel import encoders, gradients
from lf_huggingface.parallel import heads as known_heads
from lf_huggingface.parallel.batches import ModelKind, cut, sizes_of
from lf_huggingface.parallel.collectives import whole
from lf_huggingface.parallel.layers import refuse_hooks_of_accelerate, sharing
from lf_huggingface.parallel.sharded import Sharded

_OF_TOKENS = ("last_hidden_state", "start_logits", "end_logits")


def context_parallel(
    model: nn.Module, mesh: Any, *, heads: Literal["slices", "whole"] = "slices"
) -> ContextParallel:
    """Run a model over ranks, each of which has a slice of every sequence, until it is undone.

    Logits, loss and, averaged over ranks, gradients are those of one process. Call backward within: a layer
    that is computed again needs its neighbours. Parameters, their names and checkpoints stay as they are.

    Args:
        model: a Longformer or LED that `lf.patch` has patched, or a model with
            `attn_implementation="lf"` whose layers all have windows; wrapped by FSDP2, PEFT or neither.
        mesh: a DeviceMesh of one dimension, such as `mesh["cp"]`.
        heads: "slices": a rank computes logits of its own tokens, and heads that are known have the loss of
            the row. "whole": a model has its batch whole, and so has its head, of whatever kind, and its
            decoder; layers have slices all the same. So it always is with encoder-decoders.

    Returns:
        The handle, also usable in a `with` statement.

    Raises:
        DistributedError: no process group.
        ArgumentError: no mesh, or one of several dimensions.
        PatchError: layers that attend in full, or in code of their own, by name; already done.
        UnsupportedError: a head that is not known; DistributedDataParallel over these ranks.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: a model of transformers wanted, got {type(model).__name__}")
    if heads not in ("slices", "whole"):
        raise ArgumentError(f"heads: 'slices' or 'whole' wanted, got {heads!r}")
    group = Group.of(mesh)
    _refuse_wrappers(model, group)
    refuse_hooks_of_accelerate(model)
    layers = sharing(model)
    if any(ranks_of(layer) is not None for layer in layers):
        raise PatchError("model: one that is not shared by ranks yet wanted; undo() it first")
    return ContextParallel(model, group, Ranks(mesh), layers, heads == "whole")


class ContextParallel:
    """The handle of a model over ranks.

    Attributes:
        group: the ranks.
        parameters: those whose gradients `average_gradients` averages.
    """

    def __init__(
        self, model: nn.Module, group: Group, ranks: Ranks, layers: list[nn.Module], whole_heads: bool
    ) -> None:
        self.group, self._ranks, self._layers = group, ranks, layers
        self._top: Any = _top(model)
        self._kind = _kind_of(self._top)
        self._whole_heads = whole_heads or bool(getattr(self._top.config, "is_encoder_decoder", False))
        inside = encoders.around(model, layers)
        self._slices = Sharded(group, ranks)
        if not self._whole_heads:
            known_heads.check(self._top)
            hooks = [self._top.register_forward_pre_hook(self._slices.begin, with_kwargs=True)]
            hooks += known_heads.hooked(self._top, group, ranks)
        else:
            hooks = [hook for x in inside for hook in encoders.hooked(x, _kind_of(x), group, ranks)]
        for layer in layers:
            set_ranks(layer, ranks)
        self._hooks: list[Any] = hooks
        self.parameters = gradients.apart(model, group)
        self._watch = gradients.Watch(self.parameters)
        self._generating = [(x, vars(x).get("generate")) for x in model.modules() if hasattr(x, "generate")]
        for module, _ in self._generating:
            vars(module)["generate"] = _refuse_generation

    def shard(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return this rank's slices of a batch, for a forward of the model. A collective.

        All ranks give the same whole batch. What a model makes of whole rows is made before they are cut:
        positions, shifted labels, documents, global tokens. With whole heads the batch stays whole, and the
        model takes its slice itself.

        Args:
            batch: what the model takes: input_ids or inputs_embeds, attention_mask, token_type_ids,
                position_ids, global_attention_mask, labels or shift_labels, all [B, N];
                labels [B] of a classifier, start_positions and end_positions [B]; cu_seq_lens_q and
                cu_seq_lens_k of packed documents; num_items_in_batch, counted over all ranks.

        Raises:
            ShapeError, ArgumentError: what cannot be cut, by name.
            DistributedError: ranks that have different batches.
        """
        self._check_open()
        if self._whole_heads:
            return dict(batch)
        slices, known = cut(batch, self._kind, self.group)
        self._slices.add(slices, known)
        return slices

    def gather(self, outputs: Any) -> Any:
        """Return outputs of the model with all tokens, on all ranks. A collective, and differentiable.

        Args:
            outputs: of the last forward; or a tensor [B, n, ...] of its tokens.
        """
        self._check_open()
        if self._whole_heads:
            return outputs
        if isinstance(outputs, Tensor):
            return self._whole(outputs)
        pooled = type(self._top).__name__.endswith(known_heads.POOLED)
        names = _OF_TOKENS if pooled else (*_OF_TOKENS, "logits")
        found = dict(outputs)
        for name, x in found.items():
            if name in names and x is not None:
                found[name] = self._whole(x)
            elif name == "hidden_states" and x is not None:
                found[name] = tuple(map(self._whole, x))
        return type(outputs)(**found)

    def mean(self, hidden: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the mean [B, E] over each row's tokens that are no padding, on all ranks; differentiable.

        Args:
            hidden: [B, n, E], of this rank's tokens.
            attention_mask: [B, n], its slice; 0 = padding.
        """
        return known_heads.mean(self.group, hidden, attention_mask)

    def average_gradients(self) -> None:
        """Average the gradients of parameters over ranks, once for all backward calls of a step.

        A collective. FSDP2 has averaged those that it shards over a mesh which holds these ranks.
        """
        self._check_open()
        gradients.average(self.group, self.parameters)
        self.note_averaged()

    def note_averaged(self) -> None:
        """Say that gradients are averaged, for one who has done so over more ranks than these."""
        self._watch.pending = False

    def undo(self) -> None:
        """Give the model its sequences back; nothing stays.

        Raises:
            PatchError: undone already.
        """
        self._check_open()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._watch.close()
        for layer in self._layers:
            set_ranks(layer, None)
        for module, before in self._generating:
            del vars(module)["generate"]
            if before is not None:
                vars(module)["generate"] = before

    def __enter__(self) -> ContextParallel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._hooks:
            return
        self.undo()
        if error is None:
            self._watch.check()

    def _whole(self, x: Tensor) -> Tensor:
        return whole(self.group, x, sizes_of(self._ranks.length, self.group))

    def _check_open(self) -> None:
        if not self._hooks:
            raise PatchError("undo: a model that is shared by ranks wanted, this one is no more")


def _top(model: nn.Module) -> Any:
    """Return the outermost model of transformers.

    Raises:
        PatchError: there is none.
    """
    from transformers import PreTrainedModel

    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            return module
    raise PatchError(f"model: a model of transformers wanted, got {type(model).__name__}")


def _kind_of(top: Any) -> ModelKind:
    name, base = type(top).__name__, top.base_model
    taken = inspect.signature(top.forward).parameters
    embeddings: Any = getattr(base, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    fills = None
    if name == "LongformerForSequenceClassification":
        fills = _first_is_global
    elif name == "LongformerForQuestionAnswering":
        fills = _question_is_global(top.config.sep_token_id)
    return ModelKind(
        causal=name.endswith(known_heads.CAUSAL),
        labels_of_tokens=not name.endswith(known_heads.POOLED),
        padding_id=getattr(table, "padding_idx", None),
        fills=fills,
        has_positions="position_ids" in taken,
        has_cache="use_cache" in taken,
    )


def _first_is_global(input_ids: Tensor) -> Tensor:
    marked = input_ids.new_zeros(input_ids.shape)
    marked[:, 0] = 1
    return marked


def _question_is_global(separator: int) -> Any:
    from transformers.models.longformer import modeling_longformer

    before: Any = modeling_longformer._compute_global_attention_mask

    def marked(input_ids: Tensor) -> Tensor:
        found: Tensor = before(input_ids, separator)
        return found.long()

    return marked


def _refuse_wrappers(model: nn.Module, group: Group) -> None:
    for module in model.modules():
        if isinstance(module, FullyShardedDataParallel):
            raise UnsupportedError(
                "model: FSDP2 (`fully_shard`) wanted over ranks, got FullyShardedDataParallel"
            )
        if isinstance(module, DistributedDataParallel):
            theirs = set(dist.get_process_group_ranks(module.process_group))
            if len(theirs & set(dist.get_process_group_ranks(group.handle))) > 1:
                raise UnsupportedError(
                    "model: DistributedDataParallel over other ranks than those that share a sequence "
                    "wanted, got it over these; use cp.average_gradients() or FSDP2"
                )


def _refuse_generation(*_: Any, **__: Any) -> Any:
    raise UnsupportedError(
        "generate: a model that has its sequences whole wanted; undo() context_parallel first"
    )

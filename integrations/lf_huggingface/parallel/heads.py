"""Losses and pooled tokens of whole sequences: hooks on a model that has a slice.

A loss is computed here from the logits that the model gives for its slice, as transformers computes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lf_backend.distributed.group import Group
from lf_backend.errors import UnsupportedError
from lf_huggingface.interface.attending import kind_of, names_used
from lf_huggingface.interface.ranks import Ranks
from lf_huggingface.parallel.batches import IGNORED, bounds
from lf_huggingface.parallel.collectives import first_token, largest, summed

CAUSAL = ("ForCausalLM", "LMHeadModel")
TOKENS = ("ForMaskedLM", "ForTokenClassification")
SPANS = ("ForQuestionAnswering",)
POOLED = ("ForSequenceClassification",)
_TARGETS = ("labels", "shift_labels", "start_positions", "end_positions", "num_items_in_batch")


def check(model: Any) -> None:
    """Raise UnsupportedError unless the head of a model of transformers is known."""
    name = type(model).__name__
    known = (*CAUSAL, *TOKENS, *SPANS, *POOLED)
    if not name.endswith(("Model", *known)):
        raise UnsupportedError(
            f"model: a base model, or one that ends in {', '.join(known)}, wanted over ranks, got {name}; "
            "any other runs with heads='whole'"
        )
    if name.endswith(POOLED) and not _pooled_by(model):
        raise UnsupportedError(
            f"model: a head that takes the first token, or the mean of all, wanted over ranks, got {name}; "
            "any other runs with heads='whole'"
        )
    if getattr(model.config, "output_router_logits", False):
        raise UnsupportedError(
            "config.output_router_logits: False wanted over ranks, which have no common loss of experts, "
            "got True"
        )


def hooked(model: Any, group: Group, ranks: Ranks) -> Iterator[Any]:
    """Set hooks on a model of transformers whose head is known, and yield their handles."""
    yield from poolers(model, group)
    name, head = type(model).__name__, _Head(model, group, ranks)
    if name.endswith(POOLED) and hasattr(model.config, "classifier_pooling"):
        yield model.register_forward_pre_hook(head.hide_mask, with_kwargs=True)
        yield model.model.register_forward_pre_hook(head.show_mask, with_kwargs=True)
        yield model.model.register_forward_hook(head.pool)
    elif not name.endswith(POOLED):
        yield model.register_forward_pre_hook(head.take_targets, with_kwargs=True)
        yield model.register_forward_hook(head.add_loss)


def poolers(model: nn.Module, group: Group) -> Iterator[Any]:
    """Set hooks on the modules that look at a row's first token, and yield their handles."""
    for module in model.modules():
        if type(module).__name__.endswith(("Pooler", "ClassificationHead")):
            yield module.register_forward_pre_hook(_FirstToken(group))


def _pooled_by(model: Any) -> bool:
    names = [type(module).__name__ for module in model.modules()]
    return hasattr(model.config, "classifier_pooling") or any(
        name.endswith(("Pooler", "ClassificationHead")) for name in names
    )


class _FirstToken:
    """Gives a module that looks at a row's first token the row's first token."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *rest = args
        return (first_token(self.group, hidden), *rest)


class _Head:
    """The hooks of one model, and what one of them hands to the next."""

    def __init__(self, model: Any, group: Group, ranks: Ranks) -> None:
        self.model, self.group, self.ranks = model, group, ranks
        # Models that make their loss without `loss_function` do not look at `num_items_in_batch`.
        self.counts = "loss_function" in names_used(kind_of(model))
        self.targets: dict[str, Any] = {}
        self.mask: Tensor | None = None

    def take_targets(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        self.targets = {name: kwargs[name] for name in _TARGETS if kwargs.get(name) is not None}
        if kwargs.get("return_dict") is False:
            raise UnsupportedError("return_dict: True or None wanted over ranks, got False")
        return args, {name: x for name, x in kwargs.items() if name not in _TARGETS} | {"return_dict": True}

    def add_loss(self, module: nn.Module, args: Any, outputs: Any) -> Any:
        targets, self.targets = self.targets, {}
        loss = self._loss(outputs, targets) if targets else None
        if loss is None:
            return outputs
        return type(outputs)(**{**outputs, "loss": loss})

    def _loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor | None:
        name = type(self.model).__name__
        if name.endswith(SPANS):
            if "start_positions" not in targets or "end_positions" not in targets:
                return None
            ends = ("start", "end")
            parts = [self._span(outputs[f"{x}_logits"], targets[f"{x}_positions"]) for x in ends]
            return (parts[0] + parts[1]) / 2
        labels = targets.get("shift_labels", targets.get("labels"))
        return None if labels is None else self._of_tokens(outputs.logits, labels, targets)

    def _of_tokens(self, logits: Tensor, labels: Tensor, targets: dict[str, Any]) -> Tensor:
        """Return the mean cross entropy over all tokens that have a label."""
        rows, labels = logits.flatten(0, 1).float(), labels.flatten().to(logits.device)
        rows = logits.flatten(0, 1) if logits.dtype == torch.float64 else rows
        total = cross_entropy(rows, labels, ignore_index=IGNORED, reduction="sum")
        count = targets.get("num_items_in_batch") if self.counts else None
        if count is None:
            count = summed(self.group, (labels != IGNORED).sum())
        return summed(self.group, total) / count

    def _span(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy of one end of a span, a class for each token of the row.

        A target beyond the row counts for nothing, as in transformers.
        """
        length = self.ranks.length
        first, end = bounds(length, self.group)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        target = target.reshape(len(logits)).to(logits.device).clamp(0, length)
        inside, used = (target >= first) & (target < end), target < length
        unit = largest(self.group, logits.amax(1))
        total = summed(self.group, (logits - unit[:, None]).exp().sum(1))
        at = torch.where(inside, target - first, 0)[:, None]
        own = torch.where(inside, logits.gather(1, at)[:, 0], 0.0)
        each = unit + total.log() - summed(self.group, own)
        return torch.where(used, each, 0.0).sum() / used.sum()

    def hide_mask(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Keep the mask from a head that would take the mean of a slice."""
        self.mask = kwargs.get("attention_mask")
        return args, {**kwargs, "attention_mask": None}

    def show_mask(self, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Give it to the model beneath."""
        return args, {**kwargs, "attention_mask": self.mask}

    def pool(self, module: Any, args: Any, outputs: Any) -> Any:
        """Put the first token or the mean of the row in the place of the slice."""
        mask, self.mask = self.mask, None
        hidden = outputs.last_hidden_state
        if self.model.config.classifier_pooling == "cls":
            pooled = first_token(self.group, hidden)
        else:
            pooled = mean(self.group, hidden, mask)[:, None]
        return type(outputs)(**{**outputs, "last_hidden_state": pooled})


def mean(group: Group, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return [B, E], the mean over a row of the slices [B, n, E], where mask [B, n] is not 0."""
    weights = torch.ones_like(hidden[..., 0]) if mask is None else (mask != 0).to(hidden.dtype)
    total = summed(group, (hidden * weights[..., None]).sum(1))
    return total / summed(group, weights.sum(1, keepdim=True))

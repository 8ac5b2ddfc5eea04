"""The adapter behind `lf.patch`, which does not import fairseq for models of others."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lf_backend.patching import Adapter, Patterns, Swap


class Fairseq(Adapter):
    """Self-attention of fairseq's transformer layers, wherever in a model they are."""

    name = "fairseq"

    def plan(self, model: nn.Module, pattern: Patterns) -> Sequence[Swap]:
        """See `Adapter`. A list of patterns is one per layer of each encoder and each decoder found.

        In a model with an encoder and a decoder the decoder runs the past of the pattern; without an encoder
        a window that looks ahead is an error.
        """
        if not any(type(module).__module__.startswith("fairseq.") for module in model.modules()):
            return []
        from lf_fairseq.patch import swaps

        return swaps.swaps(model, pattern)

    def refusal(self, model: nn.Module) -> str:
        if not any(
            base.__module__.startswith("fairseq.") for m in model.modules() for base in type(m).__mro__
        ):
            return "looks for transformer layers of fairseq; nothing of fairseq is here"
        from lf_fairseq.patch import swaps

        return swaps.refusal(model)

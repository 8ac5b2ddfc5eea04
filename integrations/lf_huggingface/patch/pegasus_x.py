"""PegasusX's encoder layer (transformers.models.pegasus_x.modeling_pegasus_x; Phang et al. 2022, arXiv
2208.04347, section 3.1): blocks of tokens that see themselves and some learned global tokens.

Upstream keeps tokens and global tokens apart. Here they are one sequence, the global tokens last and named
by `global_mask`, in one softmax. Every other layer is staggered by half a block, which upstream does around
this layer, by padding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.pegasus_x import modeling_pegasus_x as upstream

import lf_backend as lf
from lf_backend.errors import PatternError
from lf_backend.pattern.terms import Pattern
from lf_backend.sparsity import block_local
from lf_huggingface.errors import refuse_weights
from lf_huggingface.patch import heads
from lf_huggingface.patch.exchanged import Exchanged
from lf_huggingface.patch.replacements import Replacements
from lf_huggingface.patch.upstream_checks import like, recorded

if TYPE_CHECKING:
    from lf_backend.patching import PatchMark


def _native(config: Any) -> tuple[Pattern, ...]:
    """Blocks of tokens, in every layer; the global tokens come on top."""
    return tuple(block_local(config.block_size) for _ in range(config.encoder_layers))


def _check(pattern: Pattern) -> None:
    """Raise PatternError if the pattern has global tokens: the model has its own."""
    if pattern.lowered.positions:
        raise PatternError(
            f"pattern: one without global positions wanted for PegasusX, whose global tokens are "
            f"learned and no positions of the text, got {pattern}"
        )


class PegasusXGlobalLocalAttention(Exchanged, upstream.PegasusXGlobalLocalAttention):
    """The layer of every encoder layer."""

    if TYPE_CHECKING:
        lf_mark: PatchMark

    def forward(
        self,
        token_hidden_states: Tensor,
        global_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, None]:
        """Attend from the tokens [B, N, E] and the global tokens [B, G, E]; weights are never formed.

        Args:
            attention_mask: [B, N], 0 for a token, the dtype's least number for padding.
        """
        pattern = self.lf_mark.pattern
        assert pattern is not None, "the plan gives every attention layer a pattern"
        x = torch.cat([token_hidden_states, global_hidden_states], dim=1)
        length, count = token_hidden_states.shape[1], global_hidden_states.shape[1]
        is_global = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        is_global[:, length:] = True
        padding = None
        if attention_mask is not None:
            padding = torch.nn.functional.pad(attention_mask < 0, (0, count))
        q, k, v = (
            heads.split(project(x), self.num_heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = lf.attention(
            q,
            k,
            v,
            pattern,
            key_padding=padding,
            global_mask=is_global,
            scale=self.scaling,
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.lf_mark.backend,
        )
        tokens, global_tokens = self.out_proj(heads.join(out)).split([length, count], dim=1)
        return tokens, global_tokens, None


@recorded
class PegasusXEncoder(Exchanged, upstream.PegasusXEncoder):
    """The stack of layers; says no to weights that nobody forms."""

    @like(upstream.PegasusXEncoder.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        refuse_weights(kwargs.get("output_attentions", self.config.output_attentions), "PegasusX")
        return super().forward(*args, **kwargs)


REPLACEMENTS = Replacements(
    (
        PegasusXGlobalLocalAttention,
        PegasusXEncoder,
    ),
    _native,
    _check,
)

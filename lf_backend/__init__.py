"""Exact Longformer-style sparse attention: declared once, run anywhere.

import lf_backend as lf

pattern = lf.Window(256, 256) | lf.Global(0)
out = lf.attention(q, k, v, pattern, key_padding=pad)
print(lf.explain(q, k, v, pattern))
"""

from lf_backend import conventions, schedules, sparsity
from lf_backend._callers import portable
from lf_backend.api import attention, explain, patch, probabilities
from lf_backend.backend import Backend, Capabilities
from lf_backend.dispatch.registry import backends, register
from lf_backend.dispatch.select import select, use_backend
from lf_backend.dispatch.selection import Selection
from lf_backend.errors import (
    ArgumentError,
    DistributedError,
    LFError,
    PatchError,
    PatternError,
    ShapeError,
    UnsupportedError,
)
from lf_backend.ops.documents import check_documents, document_ids
from lf_backend.patching import Patch
from lf_backend.pattern.named import term
from lf_backend.pattern.notation import from_dict, from_json, parse, to_dict, to_json
from lf_backend.pattern.picture import Picture, draw
from lf_backend.pattern.predicate import Predicate
from lf_backend.pattern.terms import Causal, Global, Pattern, Window
from lf_backend.problem import Feature, Machine, Problem
from lf_backend.schedules import receptive_field

__version__ = "0.1.0"

__all__ = [
    "ArgumentError",
    "Backend",
    "Capabilities",
    "Causal",
    "DistributedError",
    "Feature",
    "Global",
    "LFError",
    "Machine",
    "Patch",
    "PatchError",
    "Pattern",
    "PatternError",
    "Picture",
    "Predicate",
    "Problem",
    "Selection",
    "ShapeError",
    "UnsupportedError",
    "Window",
    "attention",
    "backends",
    "check_documents",
    "conventions",
    "document_ids",
    "draw",
    "explain",
    "from_dict",
    "from_json",
    "parse",
    "patch",
    "portable",
    "probabilities",
    "receptive_field",
    "register",
    "schedules",
    "select",
    "sparsity",
    "term",
    "to_dict",
    "to_json",
    "use_backend",
]

"""The conformance kit, shipped: `pytest --pyargs lf_backend.testing` tests every installed backend.

`check` runs one case on one backend against the float64 oracle; `CASES` and `strategies.cases` say
what is worth running. Needs pytest and hypothesis (`lf-backend[testing]`).
"""

from lf_backend.testing.case import Case
from lf_backend.testing.cases import CASES
from lf_backend.testing.checking import Mismatch, check

__all__ = ["CASES", "Case", "Mismatch", "check"]

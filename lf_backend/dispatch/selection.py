"""A decision with its trace, as values: what was asked, every backend's verdict, and who runs it."""

from __future__ import annotations

from dataclasses import dataclass

from lf_backend.dispatch.measured import MeasuredCall
from lf_backend.problem import Machine, Problem


@dataclass(frozen=True)
class Verdict:
    """One backend and all reasons against it; none means that it can run the problem.

    Attributes:
        by_name_alone: it runs only if it is asked for, because its gradients differ from run to run.
    """

    backend: str
    reasons: tuple[str, ...]
    by_name_alone: bool = False


@dataclass(frozen=True)
class Selection:
    """A decision with its trace. `str()` is the table that users read.

    Attributes:
        problem, machine: what was asked.
        verdicts: every backend in the order of preference.
        chosen: name of the backend that runs the problem, None if none can.
        asked: the backend asked for by name, None for the automatic choice.
        row: the measured call that has put the verdicts in their order, None where priorities have.
    """

    problem: Problem
    machine: Machine
    verdicts: tuple[Verdict, ...]
    chosen: str | None
    asked: str | None
    row: MeasuredCall | None = None

    def __str__(self) -> str:
        how = f"asked for {self.asked!r}" if self.asked else "automatic"
        width = max(len(verdict.backend) for verdict in self.verdicts)
        lines = [f"{self.problem}", f"on {self.machine}; {how}"]
        for verdict in self.verdicts:
            lines.append(f"  {verdict.backend:{width}}  {self._word(verdict)}")
        if self.row is not None:
            lines.append(f"nearest measured call: {self.row}")
        return "\n".join(lines)

    def _word(self, verdict: Verdict) -> str:
        if verdict.backend == self.chosen:
            return "runs it"
        if verdict.reasons:
            return "cannot: " + "; ".join(verdict.reasons)
        if self.asked:
            return "could, was not asked for"
        if verdict.by_name_alone:
            return "could, by name alone: its gradients differ from run to run"
        return f"could, but {self.chosen} comes first"

"""`patch`: run an existing model's attention through this library.

An *adapter* knows one family of models. It only plans: which modules become instances of which class,
with which pattern. What must never go wrong is written once, here: nothing is changed unless the whole
plan holds, a failure half-way is rolled back, and undoing gives back the very same objects.

A module is changed by giving it another class, a subclass of its own: its parameters, buffers and hooks
are not touched, so the state dict keeps its keys and no other model notices. All that is added is one
value, the module's `lf_mark`. It travels with the module, so a deep copy or an unpickled model is
patched as well, on its own, and `Patch.of(copy)` is the handle to undo it.

An integration that cannot be loaded is a reason in the error that says why nothing fits, never an
ImportError.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import Any

from torch import nn

from lf_backend.dispatch import registry, select
from lf_backend.errors import LFError, PatchError, PatternError
from lf_backend.ops.checks import check_pattern
from lf_backend.patching.adapter import Adapter, PatchMark, Patterns, Swap
from lf_backend.patching.handle import Patch, check_model, full_name, mark_of, restore
from lf_backend.pattern.terms import Pattern

ENTRY_POINTS = "lf_backend.integrations"


def patch(
    model: nn.Module,
    pattern: Pattern | str | Sequence[Pattern | str] | None = None,
    *,
    backend: str | None = None,
    unpad: bool = False,
) -> Patch:
    """Run the attention of an existing model through this library, in place.

        with lf.patch(model) as patch:
            print(patch.report)
            model(**batch)

    Only this model's own modules change: parameters, state dict and other models stay as they are. A
    deep copy of a patched model is patched too, independently.

    Args:
        model: a model that an installed integration knows, or one that holds such a model.
        pattern: what every layer runs, or one pattern per layer, as patterns or their strings; by
            default what the model's own configuration says.
        backend: name of the backend that must run all patched layers, never substituted; by default
            the choice is made anew for each call.
        unpad: drop padding once behind the embeddings and run all layers of an encoder over one row of the
            batch's real tokens, then put zeros where it was. Exact at real tokens; a batch without padding
            runs as it is.

    Returns:
        The handle to undo it, also usable in a `with` statement.

    Raises:
        PatchError: no module, patched already, or a model that no integration knows, with what each
            looked for; with `unpad`, a model whose layers need their padding.
        PatternError: a pattern, or a number of patterns, that does not fit the model.
        LFError: no backend has that name.
    """
    check_model(model)
    _check_unpatched(model)
    if backend is not None and backend not in registry.backends():
        raise select.unknown(backend)
    wanted = _patterns(pattern)
    refusals: list[str] = []
    for name, adapter in adapters().items():
        swaps = _plan(adapter, model, wanted)
        if not isinstance(swaps, str):
            if unpad:
                _check_unpads(model, swaps)
            _apply(swaps, backend, unpad)
            return Patch(model, {swap.path: swap.module for swap in swaps})
        refusals.append(f"{name}: {swaps}")
    raise PatchError(_nothing_fits(model, refusals))


def adapters() -> dict[str, Adapter | registry.Broken]:
    """All installed integrations by the names of their entry points."""
    return dict(_load(point) for point in metadata.entry_points(group=ENTRY_POINTS))


def _load(point: metadata.EntryPoint) -> tuple[str, Adapter | registry.Broken]:
    try:
        found = point.load()
        if not isinstance(found, Adapter):
            raise LFError(f"an instance of lf_backend.patching.Adapter wanted, got {found!r}")
    except Exception as error:  # whatever a plug-in does wrong is its verdict, not our crash
        return point.name, registry.Broken(point.name, f"{type(error).__name__}: {error}")
    return point.name, found


def _plan(adapter: Adapter | registry.Broken, model: nn.Module, pattern: Patterns) -> Sequence[Swap] | str:
    """Return an adapter's plan, or why it has none."""
    if isinstance(adapter, registry.Broken):
        return f"could not be loaded: {adapter.error}"
    try:
        return adapter.plan(model, pattern) or adapter.refusal(model)
    except LFError:  # the adapter knows the model, and this is its answer
        raise
    except Exception as error:  # as above: an integration that fails is a reason, shown with the others
        return f"failed: {type(error).__name__}: {error}"


def _apply(swaps: Sequence[Swap], backend: str | None, unpad: bool) -> None:
    for swap in swaps:
        _check_swap(swap)
    done: list[nn.Module] = []
    try:
        for swap in swaps:
            unpads = unpad and swap.padding is not None
            mark = PatchMark(
                type(swap.module), swap.to, swap.pattern, backend, swap.note, unpads, swap.change
            )
            vars(swap.module)["lf_mark"] = mark
            done.append(swap.module)
            swap.module.__class__ = swap.to
            if swap.change is not None:
                swap.change.apply()
    except BaseException:
        for module in done:
            restore(module)
        raise


def _check_unpads(model: nn.Module, swaps: Sequence[Swap]) -> None:
    reasons = [f"{swap.path or type(model).__name__}: {swap.padding}" for swap in swaps if swap.padding]
    if not any(swap.padding is not None for swap in swaps):
        reasons = [f"{type(model).__name__} has no module that reads the masks of all its layers"]
    if reasons:
        raise PatchError(f"unpad: a model whose layers can do without padding wanted; {'; '.join(reasons)}")


def _check_unpatched(model: nn.Module) -> None:
    patched = [path or "the model itself" for path, module in model.named_modules() if mark_of(module)]
    if patched:
        more = f" and {len(patched) - 1} more" if len(patched) > 1 else ""
        raise PatchError(f"model: not patched yet wanted, got {patched[0]}{more} patched; undo() it first")


def _check_swap(swap: Swap) -> None:
    where = swap.path or "the model"
    if not issubclass(swap.to, type(swap.module)):
        wanted, got = full_name(type(swap.module)), full_name(swap.to)
        raise PatchError(f"{where}: a replacement that is a subclass of {wanted} wanted, got {got}")
    if "forward" in vars(swap.module) and swap.to is not type(swap.module):
        raise PatchError(
            f"{where}: a forward from its class wanted, got one set on the instance (hooks of accelerate do "
            "so), which would hide the patch; patch the model before that"
        )


def _patterns(pattern: Any) -> Patterns:
    if pattern is None or isinstance(pattern, Pattern | str):
        return None if pattern is None else check_pattern(pattern)
    if not isinstance(pattern, Sequence) or not pattern:
        raise PatternError(f"pattern: a pattern, or a list of one per layer wanted, got {pattern!r}")
    return tuple(check_pattern(item) for item in pattern)


def _nothing_fits(model: nn.Module, refusals: Iterable[str]) -> str:
    classes = sorted({type(module).__name__ for module in model.modules()})
    lines = [f"model: nothing to patch in {type(model).__name__}; looked at {', '.join(classes)}"]
    lines.extend(refusals or _no_adapters())
    return "\n  ".join(lines)


def _no_adapters() -> Iterator[str]:
    yield f'no integration is installed (entry points of the group "{ENTRY_POINTS}")'

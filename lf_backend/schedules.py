"""One pattern per layer, bottom layer first: the paper's schedules by name, and the means to write others.

    layers = lf.schedules.longformer_lm("small", phase=1)     # 12 patterns for 12 layers
    layers = lf.schedules.growing(12, 32, 512)                # windows that double from layer to layer
    layers = lf.schedules.growing(12, 64, 512, of=lf.conventions.huggingface)

A schedule is a plain tuple of patterns. Small windows in the lower layers collect local information,
large ones in the upper layers see the whole input, and dilation on two heads of the upper layers reaches
farther still (Longformer, arXiv 2004.05150, sections 3.1 and 4.1, tables 4 and 12).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lf_backend._integers import integer
from lf_backend.errors import PatternError
from lf_backend.pattern.notation import from_dict, parse, to_dict
from lf_backend.pattern.terms import Pattern, Window

Schedule = tuple[Pattern, ...]

# Table 12, "dilation on 2 heads": (layers, dilation), bottom first. The paper counts the positions
# skipped, 0 to 3; a dilation here is the step between keys, 1 to 4.
_LM_DILATIONS = {
    "small": ((6, 1), (2, 2), (2, 3), (2, 4)),
    "large": ((15, 1), (5, 2), (5, 3), (5, 4)),
}
_LM_HEADS, _LM_PHASES = 8, 5


def fixed(layers: int, window: int, of: Callable[[int], Pattern] = Window.causal) -> Schedule:
    """Repeat one window in all layers.

    Args:
        window: its size, in the words of `of`.
        of: what makes a pattern of a size; by default the last `window` keys, self included.
    """
    return (of(window),) * integer("layers", layers, 1)


def growing(layers: int, bottom: int, top: int, of: Callable[[int], Pattern] = Window.causal) -> Schedule:
    """Windows that double from `bottom` to `top`, each for as many layers as the others.

    Layers that are left over go to the largest windows. So 12 layers from 32 to 512 have the mean 229,
    which is the fixed window, 230, that the paper's table 4 compares with.

    Args:
        bottom, top: sizes of the lowest and the highest layer, in the words of `of`.
        of: as in `fixed`.

    Raises:
        PatternError: `top` is not `bottom` doubled any number of times, or there are fewer layers than
            sizes.
    """
    sizes = [integer("bottom", bottom, 1)]
    while sizes[-1] < integer("top", top, bottom):
        sizes.append(2 * sizes[-1])
    if sizes[-1] != top:
        raise PatternError(f"top: bottom={bottom} times a power of two wanted, got {top}")
    each, left_over = divmod(integer("layers", layers, len(sizes)), len(sizes))
    counts = [each + (place >= len(sizes) - left_over) for place in range(len(sizes))]
    return tuple(of(size) for size, count in zip(sizes, counts, strict=True) for _ in range(count))


def shrinking(layers: int, bottom: int, top: int, of: Callable[[int], Pattern] = Window.causal) -> Schedule:
    """`growing` upside down: `bottom` is the largest window, `top` the smallest."""
    return growing(layers, top, bottom, of)[::-1]


def dilated(schedule: Sequence[Pattern], dilations: Sequence[int], heads: int, on: int = 2) -> Schedule:
    """The schedule with dilation on the first `on` of `heads` heads.

    Args:
        schedule: windows without dilation, one per layer.
        dilations: one per layer, the step between keys; 1 leaves a layer as it is.

    Raises:
        PatternError: a different number of layers, more dilated heads than heads, or a layer that is no
            plain window.
    """
    if len(dilations) != len(schedule):
        raise PatternError(f"dilations: one per layer, {len(schedule)} wanted, got {len(dilations)}")
    integer("on", on, 0, integer("heads", heads, 1) + 1)
    return tuple(_dilate(*layer, heads, on) for layer in zip(schedule, dilations, strict=True))


def _dilate(pattern: Pattern, dilation: int, heads: int, on: int) -> Pattern:
    if integer("dilations", dilation, 1) == 1:
        return pattern
    if not isinstance(pattern, Window) or pattern.dilation != 1:
        raise PatternError(f"schedule: a window without dilation wanted, got {pattern}")
    return Window(pattern.left, pattern.right, (dilation,) * on + (1,) * (heads - on))


def longformer_lm(size: str = "small", phase: int = 1) -> Schedule:
    """The character language models of the paper, table 12: causal, 8 heads, two of them dilated.

    Windows grow from 32 to 512 keys in phase 1 and are twice as large in each of the five phases.

    Args:
        size: "small" (12 layers) or "large" (30 layers).
        phase: 1 to 5.

    Raises:
        PatternError: another size or phase.
    """
    if size not in _LM_DILATIONS:
        raise PatternError(f"size: one of {sorted(_LM_DILATIONS)} wanted, got {size!r}")
    factor = 2 ** (integer("phase", phase, 1, _LM_PHASES + 1) - 1)
    dilations = [step for count, step in _LM_DILATIONS[size] for _ in range(count)]
    windows = growing(len(dilations), 32 * factor, 512 * factor)
    return dilated(windows, dilations, heads=_LM_HEADS)


def longformer_ablation(name: str) -> Schedule:
    """One of the four schedules that the paper compares in table 4, for its small model in phase 1.

    Args:
        name: "decreasing" (512 to 32), "fixed" (230), "increasing" (32 to 512), or "dilated" (increasing,
            with dilation on 2 heads); their order by development BPC, worst first.

    Raises:
        PatternError: another name.
    """
    made: dict[str, Callable[[], Schedule]] = {
        "decreasing": lambda: shrinking(12, 512, 32),
        "fixed": lambda: fixed(12, 230),
        "increasing": lambda: growing(12, 32, 512),
        "dilated": longformer_lm,
    }
    if name not in made:
        raise PatternError(f"name: one of {list(made)} wanted, got {name!r}")
    return made[name]()


def receptive_field(layers: Sequence[Pattern]) -> tuple[int | None, int | None]:
    """How far back and ahead the top layer looks through windows, in positions.

    The sum over layers of reach times dilation (paper, section 3.1: l * d * w), for the head that
    reaches farthest. None means no limit. Global tokens are left out: with one in two successive
    layers everything sees everything.

    Raises:
        PatternError: a layer that is more than windows and global tokens.
    """
    spans = []
    for layer in layers:
        if layer.lowered.others:
            raise PatternError(f"receptive_field: windows and globals wanted, got {layer}")
        spans.append([band.span() for band in layer.lowered.bands])
    back, ahead = ([_farthest([span[side] for span in layer]) for layer in spans] for side in (0, 1))
    return _sum(back), _sum(ahead)


def _farthest(reaches: list[int | None]) -> int | None:
    return None if None in reaches else max((reach for reach in reaches if reach is not None), default=0)


def _sum(reaches: list[int | None]) -> int | None:
    return None if None in reaches else sum(reach for reach in reaches if reach is not None)


def to_list(schedule: Sequence[Pattern]) -> list[dict[str, Any]]:
    """The schedule as plain data, one dict per layer; `from_list` reads it back."""
    return [to_dict(pattern) for pattern in schedule]


def from_list(items: Sequence[Mapping[str, Any] | str]) -> Schedule:
    """Read a schedule from one dict or one string per layer.

    Raises:
        PatternError: what cannot be read, and in which layer.
    """
    if isinstance(items, str | Mapping) or not isinstance(items, Sequence) or not items:
        raise PatternError(f"schedule: a list of at least one pattern wanted, got {items!r}")
    return tuple(_layer(item, f"schedule[{layer}]") for layer, item in enumerate(items))


def _layer(item: Any, where: str) -> Pattern:
    if not isinstance(item, str):
        return from_dict(item, where)
    try:
        return parse(item)
    except PatternError as error:
        raise PatternError(f"{where}: {error}") from None


def to_json(schedule: Sequence[Pattern]) -> str:
    """`to_list` as one line of JSON."""
    return json.dumps(to_list(schedule))


def from_json(text: str) -> Schedule:
    """Read a schedule from `to_json`'s form, or from a JSON list of strings."""
    try:
        items = json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise PatternError(f"schedule: JSON wanted, got {text!r}: {error}") from None
    return from_list(items)

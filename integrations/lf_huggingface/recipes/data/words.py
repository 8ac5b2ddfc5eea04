"""Text: normalised as the sources of the data sets are, and where answers occur in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# Qangaroo's text is tokenised: blanks stand before punctuation and inside brackets and quotes.
_DETACHED = ((" .", "."), (" ,", ","), (" ;", ";"), (" :", ":"), (" !", "!"), (" ?", "?"), (" )", ")"),
             ("( ", "("),
             (" 's", "'s"), (" n't", "n't"), ("`` ", '"'), (" ''", '"'))  # fmt: skip


def attached(text: str) -> str:
    """Tokenised text as people write it: no blank before punctuation, one blank elsewhere."""
    for before, after in _DETACHED:
        text = text.replace(before, after)
    return " ".join(text.split())


def occurrences(text: str, answers: Iterable[str], most: int) -> list[tuple[int, int]]:
    """Find answers in a text as whole words, in any case: (start, end) in characters, in order.

    Answers are text, never a pattern: "C++" and "U.S." match themselves. Of answers that overlap the longest
    counts.

    Args:
        most: the first so many.
    """
    wanted = sorted({answer.strip() for answer in answers if answer.strip()}, key=lambda x: (-len(x), x))
    if not wanted:
        return []
    either = "|".join(re.escape(answer) for answer in wanted)
    found = re.finditer(rf"(?<!\w)(?:{either})(?!\w)", text, re.IGNORECASE)
    return [match.span() for match, _ in zip(found, range(most), strict=False)]


def tokens_of(
    offsets: list[tuple[int, int]] | list[list[int]], start: int, end: int
) -> tuple[int, int] | None:
    """The first and last token that hold characters start to end, or None where no token holds any.

    Args:
        offsets: (start, end) of each token in characters; an empty one is no text.
    """
    inside = [at for at, (first, last) in enumerate(offsets) if first < end and last > start and last > first]
    return (inside[0], inside[-1]) if inside else None


def spans_of_tokens(
    offsets: list[tuple[int, int]], spans: Iterable[tuple[int, int]]
) -> Iterator[tuple[int, int]]:
    """Spans in characters to spans in tokens, without those that begin or end where no token is."""
    length = offsets[-1][1] if offsets else 0
    for start, end in spans:
        if end <= length and (found := tokens_of(offsets, start, end)) is not None:
            yield found

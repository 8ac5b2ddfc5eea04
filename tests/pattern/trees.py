"""Patterns together with their meaning, pair by pair, written down a second time in plain Python."""

from dataclasses import dataclass

from hypothesis import strategies as st

from lf_backend import Causal, Global, Window

HEADS = 2


@dataclass(frozen=True)
class Leaf:
    term: object

    def pattern(self):
        return self.term

    def sees(self, head, query, key):
        match self.term:
            case Window(left, right, dilation):
                step = dilation[head] if isinstance(dilation, tuple) else dilation
                far = 1000
                back, ahead = far if left is None else left, far if right is None else right
                return any(key == query + step * tap for tap in range(-back, ahead + 1))
            case Global(positions):
                return query in positions or key in positions
            case Causal():
                return key <= query


@dataclass(frozen=True)
class Node:
    sign: str
    left: object
    right: object

    def pattern(self):
        left, right = self.left.pattern(), self.right.pattern()
        return left | right if self.sign == "|" else left & right

    def sees(self, head, query, key):
        left, right = self.left.sees(head, query, key), self.right.sees(head, query, key)
        return left or right if self.sign == "|" else left and right


@st.composite
def windows(draw):
    reach = st.one_of(st.integers(0, 6), st.none())
    step = st.integers(1, 4)
    dilation = draw(st.one_of(step, st.lists(step, min_size=HEADS, max_size=HEADS)))
    return Window(draw(reach), draw(reach), dilation)


def trees(length):
    """Any term of up to `length` positions, alone or combined."""
    tokens = st.lists(st.integers(0, length - 1), max_size=3).map(lambda at: Global(*at))
    leaves = st.one_of(windows(), windows(), tokens, st.just(Causal())).map(Leaf)
    return st.recursive(
        leaves, lambda inner: st.builds(Node, st.sampled_from("||&"), inner, inner), max_leaves=5
    )

"""Arithmetic that is written once: whoever computes, these are the numbers.

precision.py       which dtype accumulates
dense.py           attention over a rectangle of queries and keys, forward and backward
band_bias.py       the bias of a window as a dense rectangle, and back
dropout.py         which weights are dropped
join.py            two softmaxes over disjoint keys as one
global_columns.py  that of global columns, joined to a window's
positive_scale.py  scales for kernels that want them positive
recorded.py        autograd inside a custom operator
"""

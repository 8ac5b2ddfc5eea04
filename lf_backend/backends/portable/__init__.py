"""Attention by ordinary differentiable operators: for exporters, tracers and transforms, on any device.

The same mathematics as every backend, and nothing that PyTorch cannot see into: no operator of our own, no
look at data, lengths that may be symbols, derivatives of any order. Memory is linear in length: blocks of
queries meet the blocks of keys that their window reaches.

pieces.py    a softmax over some keys, and several of them as one
windows.py   the keys of a window
tokens.py    the keys of global tokens and of rules, and the rows of global tokens
backend.py   the local part, as a backend like any other
"""

from lf_backend.backends.portable.backend import Portable as Portable

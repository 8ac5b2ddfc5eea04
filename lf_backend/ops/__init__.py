"""From checked arguments to a backend and back.

checks.py          what a call may be; every error about its arguments
arguments.py       the one list of the operator's arguments, and the problem that they pose
op.py              the operator pair and its autograd
ordinary.py        the whole call by ordinary operators, for who cannot take the operator
around_backend.py  what is done once for all backends: sinks, padding, global rows
global_rows.py     which tokens are global, and their rows
"""

"""The choice of a backend for a call.

registry.py    the one list of backends
priorities.py  the order of backends until they are measured
measured.py    calls that were timed, and the nearest to a problem
selection.py   a decision with its trace, as values
select.py      the decision itself, and what a caller prefers
"""

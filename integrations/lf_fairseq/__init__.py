"""fairseq: sparse attention by configuration, as a `--user-dir`, and by patching.

This package is the `--user-dir` itself; `python -m lf_fairseq` prints where it is.
"""

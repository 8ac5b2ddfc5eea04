"""`python -m lf_fairseq`: the folder to give to `--user-dir`."""

from pathlib import Path

print(Path(__file__).parent)

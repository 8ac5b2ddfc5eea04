"""`python -m lf_huggingface`: convert."""

from lf_huggingface.cli import app

app(prog_name="python -m lf_huggingface")

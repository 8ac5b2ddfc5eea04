"""`python -m lf_backend`: info, explain, draw, demo."""

from lf_backend.cli.app import app

app(prog_name="python -m lf_backend")

"""The command line. The library does not import it, so `import lf_backend` loads no typer and no rich."""

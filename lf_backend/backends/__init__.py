"""Backends: one module each, found by listing this folder. Backends never import each other."""

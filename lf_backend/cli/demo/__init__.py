"""The main job, to see: a Longformer of Hugging Face reads a long text as it is and through this library.

Loaded by the command line alone. It needs transformers, and matplotlib for its plot.
"""

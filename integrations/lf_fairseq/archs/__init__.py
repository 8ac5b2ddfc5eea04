"""Architectures by name: every one of transformer_lm, transformer, bart and roberta with `_lf`, and the
paper's language model.

    options.py        `--attention-pattern` and the others
    transformers.py   fairseq's own architectures
    longformer_lm.py  the paper's character language model
"""

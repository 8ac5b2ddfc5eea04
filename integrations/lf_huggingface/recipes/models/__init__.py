"""Models of the recipes.

encoders.py  any encoder from a folder: converted if it is short, sparse in any case
reader.py    an encoder and a head as one model, saved and loaded by from_pretrained
heads.py     the heads: candidates, spans, evidence
marks.py     new tokens, whose embeddings start as the table's own
"""

"""Checkpoints made long: RoBERTa, BERT and their kin become Longformers, or keep their class.

mappings.py   which weights go where
convert.py    a model from a model
positions.py  tables of learned positions
verify.py     whether source and result agree
"""

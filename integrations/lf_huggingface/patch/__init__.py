"""`lf.patch`: models that attend in code of their own get classes of these files, others are configured.

adapter.py            which modules of a model are replaced, by which class, with which pattern
config_patterns.py    the pattern that a model's own configuration asks for
longformer.py, led.py, big_bird.py, bigbird_pegasus.py, longt5.py, pegasus_x.py   one family each
routed.py             models that attend through transformers' interface
replacements.py       what each of these files says of itself
exchanged.py          what all these classes share
self_attention.py     what the attention of Longformer and LED share, with
heads.py, token_masks.py, encoder_loop.py, attention_weights.py, zero_gradients.py, packed_rows.py, and
folded_rows.py        the rows of few global tokens, of which no token is projected
auto.py               patching what others load
upstream_checks.py    comparing transformers' own seams
"""

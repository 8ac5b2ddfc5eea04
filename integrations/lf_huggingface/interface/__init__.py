"""Models that attend through transformers' attention interface: `attn_implementation="lf"`.

register.py           "lf" in transformers' tables of attentions and masks
config_patterns.py    what `config.lf_attention` asks for
mask_function.py      called once a forward for the mask: who sees what, encoded for the layers
mask_meaning.py       which masks are windows, causal, padding
encoded_mask.py       the tensor that layers are handed, and its way back
attention.py          called by every layer: the mask decoded, the pattern run
call.py, cached_keys.py, documents.py, dense.py   one kind of call each
"""

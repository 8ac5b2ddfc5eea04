"""Models that attend through transformers' attention interface: `attn_implementation="lf"`.

register.py, names.py      "lf" in transformers' tables of attentions and masks
loading.py                 configs that hold a pattern, where transformers makes, saves and changes models
watched.py, attending.py   hooks on layers that the attention function cannot judge; which layers these are
config_patterns.py         what `config.lf_attention` asks for
mask_function.py           called once a forward for the mask: who sees what
mask_meaning.py            which masks are windows, causal, padding
carried_mask.py            the object that layers are handed
mask_kind.py               the part of it that no data have a say in
attention.py               called by every layer: the mask read, the pattern run
receipt.py                 which layers ran which pattern
keywords.py                words that reach the attention function and have no say in it
ranks.py                   layers whose sequences are shared by ranks
layer_call.py              the arguments of a layer, and the sparse call that they become
cached_keys.py, documents.py, dense.py   keys of a cache, packed documents, what runs densely
"""

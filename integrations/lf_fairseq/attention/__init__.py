"""Self-attention with fairseq's signature.

self_attention.py      fairseq's multi-head attention, sparse
mask_bits.py           padding and global tokens in one mask
keys.py, global_positions.py, decoding_buffer.py   where keys are, in training and in decoding
projections.py         projections of global tokens
relative.py, relative_attention.py   Transformer-XL's relative positions
"""

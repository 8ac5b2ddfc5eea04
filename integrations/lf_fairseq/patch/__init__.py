"""Stock models of fairseq, patched.

adapter.py, swaps.py   which modules are replaced, by which class, with which pattern
stacks.py              encoders and decoders, as far as they must know what their attention sees
side_channel.py        how a batch's global tokens reach them
global_tokens.py, global_projections.py   what users set on a patched model
"""

"""One sequence over ranks: measured on those of torchrun, and on paper for more of them.

measured.py  what is run: correctness, weak and strong scaling, beside an all-gather of keys
peers.py     torch's own context parallelism, which runs on GPUs
paper.py     time per layer from rates of kernels and links, to 1,024 ranks, with a picture
"""

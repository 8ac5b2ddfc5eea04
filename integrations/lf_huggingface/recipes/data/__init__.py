"""Examples on their way to a model.

store.py    encoded examples in a cache on disk
order.py    the order of examples: a function of seed and epoch alone
padding.py  rows of different lengths to tensors
words.py    normalised text, and where answers occur in it
"""

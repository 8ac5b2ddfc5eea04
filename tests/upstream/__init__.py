"""transformers' own modeling tests, with our attention in the place of sdpa's: see `__main__`."""

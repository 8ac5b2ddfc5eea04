"""A trial: files of each format, small enough for a minute, and a small model with its tokenizer."""

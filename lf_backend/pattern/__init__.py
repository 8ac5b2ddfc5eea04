"""Patterns: the one definition of visibility, against which everything else is tested.

A pattern is a value. It is written with terms, and run in a lowered form:

    window(4, 4) | global(0)          terms.py       what people write: `sees` is the definition
              |
              |  lower
              v
    bands  [Band(4, 4, (1,))]         bands.py       windows, counted in steps of their dilation
    tokens [0]                        lowered.py     bands, global tokens, and rules for the rest
    rules  []                         predicate.py   any rule on index tensors

    disjoint.py, spans.py, block_map.py   which pairs two bands share; which keys a block of queries meets
    named.py, notation.py, grammar.py     terms with a name; patterns as dicts, JSON and text
    interned.py, global_positions.py      values behind an operator's strings; global tokens that move
    interchange.py, picture.py            FlexAttention's and xformers' own words; drawings
"""

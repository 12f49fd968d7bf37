"""Scorers: what gives every item of a catalogue a score for a history.

`base.py`, `factors.py` and `sums.py` are PyTorch's, for training and evaluation. `rows.py`, `row_factors.py`,
`topk.py` and `index.py` are the same without PyTorch, for answering. This file imports neither.
"""

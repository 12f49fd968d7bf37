"""Memory: what reads alike, what follows what and what is chosen now, counted from a log without any training.

`settings.py` says what it is made of. `content.py`, `transitions.py` and `recency.py` are its parts, each a
:class:`~llmd4rec.scoring.rows.RowScorer`, `counting.py` counts them, and `state.py` is their weighted sum. Nothing here
needs PyTorch or SciPy.
"""

"""Losses over (states, item table), block by block; ranks and sample weights."""

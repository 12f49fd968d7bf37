"""Models: histories in, states and an item table out."""

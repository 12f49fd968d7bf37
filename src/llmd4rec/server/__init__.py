"""The HTTP service: `llmd4rec serve`. Needs the `serve` extra and no PyTorch."""

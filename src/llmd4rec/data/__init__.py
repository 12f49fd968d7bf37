"""Raw logs and catalogues in, a checked, memory-mapped :class:`~llmd4rec.data.dataset.Dataset` out."""

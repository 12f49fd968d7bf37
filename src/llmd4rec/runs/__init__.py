"""A run folder: what was trained, with which settings, on which data; and the pipeline that fills it."""

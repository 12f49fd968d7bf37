"""Where a training runs: in this process alone, or in several that train one model together."""

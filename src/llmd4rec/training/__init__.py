"""Training one model towards one loss."""

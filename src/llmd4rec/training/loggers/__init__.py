"""Where the figures of epochs go."""

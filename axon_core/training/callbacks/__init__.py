"""The hooks that come with the core: a progress line, the metrics file, and the plot of the loss."""

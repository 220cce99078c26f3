"""One training on many processes: how they are joined, and how weights, gradients and work are divided among them."""

"""What the side-by-side measurements share: shapes, the same weights in every library, workers, and records."""

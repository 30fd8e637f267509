"""Data sets in memory, and batches drawn from them."""

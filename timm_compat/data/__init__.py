"""Data sets, in memory and in files, and batches drawn from them."""

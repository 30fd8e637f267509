"""Efficient transfer learning: compatible starts, heads from cheap extractors, adapters; each beside the usual."""

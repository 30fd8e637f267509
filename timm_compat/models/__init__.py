"""Extractors, heads, and what is composed of them."""

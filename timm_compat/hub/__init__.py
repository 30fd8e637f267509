"""Use of the Hub: publish, load, search."""

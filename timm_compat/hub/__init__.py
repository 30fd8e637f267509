"""The Hub's far side: publish, load whatever is there, search."""

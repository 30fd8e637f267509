"""Scores, the recombination matrix, and pictures."""

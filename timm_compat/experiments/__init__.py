"""Whole tasks that a practitioner runs."""

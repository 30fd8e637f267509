"""Joining: an existing backbone becomes an extractor of an existing space, without labels."""

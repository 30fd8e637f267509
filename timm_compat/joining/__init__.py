"""Joining: a backbone that exists becomes an extractor of a space that exists, without labels."""

"""Heads that outlive their extractor: put on other architectures, and kept when an extractor is upgraded."""

"""The version, in a leaf that anything may import."""

__version__ = "0.2.0"

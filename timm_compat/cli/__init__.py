"""The command line, ``timm-compat``."""

from timm_compat.cli.main import main

__all__ = ["main"]

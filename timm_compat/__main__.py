"""``python -m timm_compat``."""

import sys

from timm_compat.cli import main

if __name__ == "__main__":
    sys.exit(main())

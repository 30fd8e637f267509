"""Optional packages: imported when first used, with the pip line when they are missing."""

import importlib
from types import ModuleType

from timm_compat.errors import MissingExtraError


def require(module: str, extra: str) -> ModuleType:
    """Import and return ``module`` (dotted name), which the optional extra ``extra`` installs.

    Raises:
        MissingExtraError: the package is not installed; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise MissingExtraError(
            f'{package} is needed here and is not installed; pip install "timm-compat[{extra}]"'
        ) from error

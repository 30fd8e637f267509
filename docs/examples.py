"""A Griffe extension: a docstring's "Example:" is shown as code, as the section "Examples:" is.

Griffe takes "Example:" for a box of prose, in which ``>>>`` is a quotation and ``["a"][0]`` a link.
"""

import re
from typing import Any

import griffe

ONE_EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class Examples(griffe.Extension):
    """Renames the section when an object has been read."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = ONE_EXAMPLE.sub(r"\1Examples:", obj.docstring.value)

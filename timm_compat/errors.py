"""Every error that timm_compat raises on purpose.

::

    CompatError
    ├── ConfigError          (ValueError)       a setting, name or argument is wrong
    ├── SpaceMismatchError   (ValueError)       two components live in different spaces
    ├── DraftSpaceError      (RuntimeError)     the space is still a draft, or already final
    ├── BackboneError        (ValueError)       a timm architecture cannot be used as asked
    ├── ImageError           (ValueError)       images of the wrong rank, channels, size or dtype
    ├── DataError            (ValueError)       a data set or its labels do not fit
    ├── FuseError            (ValueError)       a composed model has no plain timm form
    ├── ExportError          (ValueError)       a model cannot be written as ONNX or PyTorch's export format
    ├── ComponentFileError   (ValueError)       a component's folder is missing, damaged or foreign
    ├── OutputExistsError    (FileExistsError)  the output folder holds something already
    ├── OutputWriteError     (OSError)          the output cannot be written: no permission, space or path
    ├── HubError             (OSError)          the Hugging Face Hub refused or failed
    │   ├── HubAccessError      (PermissionError)    no valid token (401), or one without the right (403)
    │   ├── HubConnectionError  (ConnectionError)    no network, offline, or a server that fails
    │   ├── HubNotFoundError    (FileNotFoundError)  no such repository, revision or file
    │   └── HubTimeoutError     (TimeoutError)       no answer within the time limit
    ├── TrainingError        (RuntimeError)     training cannot continue
    └── MissingExtraError    (ImportError)      an optional package is not installed

A message names what was expected, what came and the way out.
"""


class CompatError(Exception):
    """Base class: ``except CompatError`` catches every deliberate error of this package.

    Control characters in a message are escaped: file names, keys and tensor names that strangers chose are quoted in
    it, and must not steer a terminal.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*map(_legible, args))


def _legible(value: object) -> object:
    if not isinstance(value, str) or value.isprintable():
        return value
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode() for sign in value
    )


class ConfigError(CompatError, ValueError):
    """A setting, name or argument is wrong."""


class SpaceMismatchError(CompatError, ValueError):
    """Two components live in different compatibility spaces; the message lists the fields that differ."""


class DraftSpaceError(CompatError, RuntimeError):
    """The space is still a draft where a final one is needed, or final where a draft is needed."""


class BackboneError(CompatError, ValueError):
    """A timm architecture is unknown, or cannot be used as asked; the message names the reason and the way out."""


class ImageError(CompatError, ValueError):
    """Images of the wrong rank, channels, size or dtype."""


class DataError(CompatError, ValueError):
    """A data set or its labels do not fit what is asked of them."""


class FuseError(CompatError, ValueError):
    """A composed model cannot be written as one plain timm model; the message says why."""


class ExportError(CompatError, ValueError):
    """A model cannot be written as ONNX or in PyTorch's export format; the message says why."""


class ComponentFileError(CompatError, ValueError):
    """A component's folder or file is missing, damaged, or of another kind than expected."""


class OutputExistsError(CompatError, FileExistsError):
    """The output folder already holds something that would be overwritten."""


class OutputWriteError(CompatError, OSError):
    """The output cannot be written: no permission, a full disk, or no such path."""


class HubError(CompatError, OSError):
    """The Hugging Face Hub refused or failed; the message says what to do. It never holds a token."""


class HubAccessError(HubError, PermissionError):
    """No valid token where one is needed (401), or a token without the right (403)."""


class HubConnectionError(HubError, ConnectionError):
    """The Hub cannot be reached, offline mode is on, or the server fails."""


class HubNotFoundError(HubError, FileNotFoundError):
    """No such repository, revision or file on the Hub, or in its cache while offline."""


class HubTimeoutError(HubError, TimeoutError):
    """The Hub gave no answer within the time limit."""


class TrainingError(CompatError, RuntimeError):
    """Training cannot continue; the message names the step and the member."""


class MissingExtraError(CompatError, ImportError):
    """An optional package is not installed; the message holds the pip line."""

"""One folder, one component: written completely or not at all, and read only after every check.

A folder holds ``config.json`` (authoritative), one or more safetensors files and a card, ``README.md``. Our facts
sit in ``config.json`` under the root key ``timm_compat``; the SHA-256 of every weights file is among them. Nothing
in a config is imported, executed or used as a path.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from timm_compat._version import __version__
from timm_compat.errors import CompatError, ComponentFileError, ConfigError, OutputExistsError, OutputWriteError
from timm_compat.vocabulary import printable

FORMAT = 1  # that is written; every one up to the newest is read, each by its own rules
THIN_FORMAT = NEWEST_FORMAT = 2  # of extractors without their backbone's weights
ROLES = ("extractor", "head", "space", "model")
ROOT_KEY = "timm_compat"
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CARD_FILE = "README.md"
INTERFACE_FILE = "interface.safetensors"
PICTURE_FILE = "matrix.png"
KNOWN_FILES = (CONFIG_FILE, WEIGHTS_FILE, INTERFACE_FILE, CARD_FILE, PICTURE_FILE)
KNOWN_KEYS = frozenset(
    {
        *("format", "role", "space", "sha256", "library_versions", "interface", "preprocessing", "class_names", "head"),
        *("parameters", "extractor", "parts", "fused", "license", "base_model", "base_model_commit", "member"),
        *("datasets", "metrics", "training", "matrix", "base_model_relation", "base", "interface_weight"),
        *("license_name", "license_link", "language", "citation"),
    }
)
MAX_CONFIG_BYTES = 16 * 2**20
MAX_CARD_BYTES = 4 * 2**20
# What a safetensors file may hold besides its tensors: a header of names, shapes and some metadata.
HEADER_BYTES, HEADER_BYTES_PER_TENSOR = 2**16, 512
HASH_BLOCK = 2**18  # bytes
PROBE = ".timm-compat-probe-"  # a file's name while a place is tried
PROBE_BYTES = 2**12
CONVERTIBLE = (torch.float16, torch.bfloat16, torch.float64)

_warned: set[tuple[str, ...]] = set()

Tensors = Mapping[str, Tensor]


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of a tensor's dtype, shape and bytes."""
    data = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{data.dtype}{tuple(data.shape)}".encode())
    digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tensors_sha256(tensors: Tensors) -> str:
    """SHA-256 over named tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}={tensor_sha256(tensors[name])};".encode())
    return digest.hexdigest()


def file_sha256(file: Path | bytes) -> str:
    """SHA-256 of a file's bytes."""
    return _file_digest(file, hashlib.sha256())


def largest_file(expected: Tensors) -> int:
    """Bytes that a safetensors file of these tensors has at most, double precision allowed for."""
    content = sum(
        tensor.numel() * (8 if tensor.is_floating_point() else tensor.itemsize) for tensor in expected.values()
    )
    return content + HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(expected)


def git_sha1(file: Path | bytes) -> str:
    """The id that git gives to a file's bytes."""
    size = len(file) if isinstance(file, bytes) else file.stat().st_size
    return _file_digest(file, hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False))


def library_versions() -> dict[str, str]:
    """Versions of this package and of those that decide what a component computes."""
    versions = {"timm_compat": __version__}
    for name in ("timm", "torch", "torchvision"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """A block that writes; what the system refuses there becomes our error.

    Raises:
        OutputWriteError: no right, no room, or no such place.
    """
    try:
        yield
    except CompatError:
        raise
    except (OSError, SafetensorError) as error:
        raise OutputWriteError(
            f"expected to write to {str(place)!r}, got {error}; check permissions and space, or choose another path"
        ) from error


def check_writable(folder: str | Path) -> Path:
    """The folder as a path, if files can be written there: a small one is, and removed.

    Args:
        folder: may be still to be made; then its nearest parent is tried.

    Raises:
        OutputWriteError: they cannot.
    """
    path = Path(folder)
    with writing(path):
        nearest = next(place for place in (path, *path.parents) if place.is_dir())
        with tempfile.NamedTemporaryFile(prefix=PROBE, dir=nearest) as probe:
            probe.write(bytes(PROBE_BYTES))
            probe.flush()
    return path


def check_new_folder(folder: str | Path) -> Path:
    """The folder as a path, if nothing stands there yet and it can be written.

    Raises:
        OutputExistsError: the folder holds something, or a file has its name.
        OutputWriteError: nothing can be written there.
    """
    path = Path(folder)
    # Another process may be trying the same place.
    if path.is_dir() and all(found.name.startswith(PROBE) for found in path.iterdir()):
        return check_writable(path)
    for taken in (path, *path.parents):
        if taken.is_symlink() or taken.exists():
            if taken is not path and taken.is_dir():
                break
            raise OutputExistsError(
                f"expected a new or empty output folder, got {str(path)!r}, but {str(taken)!r} exists; "
                "choose another name or move the old one away"
            )
    return check_writable(path)


@contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; it gets its own when the block ends well, and vanishes otherwise.

    Args:
        folder: new or empty; its parents are made.

    Raises:
        OutputExistsError: the folder holds something already.
        OutputWriteError: it cannot be written.
    """
    target = check_new_folder(folder)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            yield partial
            partial.chmod(0o777 & ~_umask())
            if target.is_dir():
                target.rmdir()
            partial.rename(target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def replaced_file(file: Path) -> Iterator[Path]:
    """A path to write under a temporary name; it takes the file's place when the block ends well, else vanishes.

    The name is this process's and thread's own, so that several may write the same file. Its folder is made.

    Raises:
        OutputWriteError: it cannot be written.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)


def replace_text(file: Path, text: str) -> None:
    """Write a text file in one step."""
    with replaced_file(file) as partial:
        partial.write_text(text, encoding="utf-8")


def write_component(
    folder: str | Path,
    role: str,
    facts: Mapping[str, Any],
    weights: Mapping[str, Tensors],
    card: str,
    root: Mapping[str, Any] | None = None,
    unbounded: Collection[str] = (),
    number: int | None = None,
) -> Path:
    """Write a component's folder in one step: it appears complete, or not at all.

    Args:
        folder: new or empty; its parents are made.
        role: one of ``ROLES``.
        facts: our part of the config, JSON values.
        weights: tensors by file name.
        card: text of ``README.md``.
        root: further keys at the config's root (timm's own).
        unbounded: names of tensors that may hold infinity.
        number: of the format, that of whole components if None.

    Raises:
        OutputExistsError: the folder holds something already.
        OutputWriteError: it cannot be written.
        ConfigError: weights that could not be read back: not float32, or with NaN.
    """
    with new_folder(folder) as partial:
        hashes = {name: _save_tensors(partial / name, tensors, unbounded) for name, tensors in weights.items()}
        ours = {"format": number or FORMAT, "role": role, **facts}
        ours |= {"sha256": hashes, "library_versions": library_versions()}
        config = {**(root or {}), ROOT_KEY: ours}
        (partial / CONFIG_FILE).write_text(to_json(config), encoding="utf-8")
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
    return Path(folder)


def to_json(config: Mapping[str, Any]) -> str:
    """The text of a ``config.json``.

    Raises:
        ConfigError: facts that are no JSON values: NaN, infinity, an object.
    """
    try:
        return json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"expected JSON values as facts about the component, got others ({error})") from error


def parse_json(data: bytes) -> Any:
    """JSON as its standard has it: no NaN, no infinity, every key once, and nothing that is no Unicode text.

    Raises:
        ValueError: anything else.
    """
    try:
        text = data.decode("utf-8")
        value = json.loads(text, parse_constant=_refuse_number, parse_float=_finite, object_pairs_hook=_once)
        if "\\ud" in text.lower():  # escapes can hold halves of characters, which no file can be written with
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _refuse_number(text: str) -> float:
    raise ValueError(f"expected a finite number, got {text}")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_number(text[:20])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"expected every key once, got {twice!r:.80} twice")
    return values


def read_config(folder: str | Path, role: str | None = None) -> dict[str, Any]:
    """The checked ``config.json`` of a component folder.

    Args:
        folder: the component's.
        role: the role that is expected; any if None.

    Raises:
        ComponentFileError: no such folder or file, not our format, a newer format, or another role.
    """
    path = Path(folder)
    if not os.path.isdir(path):  # where Path.is_dir raises (rights, too long a name), this says no
        raise ComponentFileError(f"expected a component's folder, found none at {str(path)!r:.300}; check the path")
    file = path / CONFIG_FILE
    if not os.path.isfile(file):
        raise ComponentFileError(f"expected {CONFIG_FILE} in {str(path)!r}, found none; is this a component's folder?")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise ComponentFileError(f"{file}: expected at most {MAX_CONFIG_BYTES} bytes, got {file.stat().st_size}")
    try:
        config = parse_json(file.read_bytes())
    except ValueError as error:
        raise ComponentFileError(f"{file}: expected JSON, got something else ({error}); fetch it again") from error
    except OSError as error:  # a link to where nothing can be read, rights
        raise ComponentFileError(f"{file}: cannot be read ({error}); fetch it again") from error
    ours = config.get(ROOT_KEY) if isinstance(config, dict) else None
    if not isinstance(ours, dict):
        raise ComponentFileError(
            f"{file}: expected the key {ROOT_KEY!r}, found none: this is not a component of timm-compat "
            "(plain timm loads its own models)"
        )
    check_format(file, ours.get("format"), NEWEST_FORMAT if ours.get("role") == "extractor" else FORMAT)
    if ours.get("role") not in ROLES:
        raise ComponentFileError(f"{file}: expected a role among {', '.join(ROLES)}, got {ours.get('role')!r}")
    if role is not None and ours["role"] != role:
        raise ComponentFileError(
            f"{file}: expected a component of role {role!r}, got {ours['role']!r}; load it with its own class"
        )
    if not isinstance(ours.get("sha256"), dict):
        raise ComponentFileError(f"{file}: expected the SHA-256 of every weights file, found none")
    _warn_of_unknown(file, ours)
    return config


def read_tensors(
    folder: str | Path,
    name: str,
    config: Mapping[str, Any],
    expected: Tensors,
    unbounded: Collection[str] = (),
    convert: bool = False,
) -> dict[str, Tensor]:
    """The tensors of one weights file, after its hash, names, shapes, dtypes and finiteness were checked.

    Args:
        folder: the component's folder.
        name: a file name known to the caller (never one taken from a config).
        config: what ``read_config`` returned.
        expected: tensors (on any device, meta too) whose names, shapes and dtypes the file must have.
        unbounded: names of tensors that may hold infinity.
        convert: whether half or double precision is converted to the expected one.

    Raises:
        ComponentFileError: any check fails; the message names the file, what was expected and what came.
    """
    file = Path(folder) / name
    if not file.is_file():
        raise ComponentFileError(f"expected {name} in {str(folder)!r}, found none; fetch the component again")
    if file.stat().st_size > largest_file(expected):
        raise ComponentFileError(
            f"{file}: expected at most {largest_file(expected)} bytes for these tensors, got {file.stat().st_size}"
        )
    try:
        recorded, actual = config[ROOT_KEY]["sha256"].get(name), file_sha256(file)
    except OSError as error:
        raise ComponentFileError(f"{file}: cannot be read ({error}); fetch it again") from error
    if recorded != actual:
        raise ComponentFileError(
            f"{file}: expected SHA-256 {recorded} (config.json), got {actual}: "
            "the file is damaged or was exchanged; fetch it again"
        )
    return read_safetensors(file, expected, unbounded, convert)


def read_safetensors(
    file: Path, expected: Tensors, unbounded: Collection[str] = (), convert: bool = False, *, whole: bool = True
) -> dict[str, Tensor]:
    """The expected tensors of a safetensors file, their names, shapes, dtypes and finiteness checked.

    Args:
        file: as a caller that checked where it comes from names it.
        expected: tensors (on any device, meta too) whose names, shapes and dtypes it must have.
        unbounded: names of tensors that may hold infinity.
        convert: whether half or double precision is converted to the expected one.
        whole: whether the file may hold nothing else.

    Raises:
        ComponentFileError: any check fails.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            found = set(opened.keys())
            _check_keys(file, found if whole else found & set(expected), set(expected))
            for key, tensor in expected.items():
                _check_shape(file, key, tuple(opened.get_slice(key).get_shape()), tuple(tensor.shape))
            tensors = {key: opened.get_tensor(key) for key in expected}
    except (SafetensorError, OSError) as error:
        raise ComponentFileError(f"{file}: expected a safetensors file, got something else ({error})") from error
    for key, tensor in tensors.items():
        if tensor.dtype != expected[key].dtype:
            tensors[key] = tensor = _converted(file, key, tensor, expected[key], convert)
        if not is_sound(key, tensor, unbounded):
            raise ComponentFileError(f"{file}: {key}: expected finite numbers, got NaN or infinity")
    return tensors


def _converted(file: Path, key: str, tensor: Tensor, expected: Tensor, convert: bool) -> Tensor:
    possible = tensor.dtype in CONVERTIBLE and expected.is_floating_point()
    if convert and possible:
        return tensor.to(expected.dtype)
    way_out = "; from_pretrained(..., convert=True) converts it" if possible else ""
    raise ComponentFileError(f"{file}: {key}: expected {expected.dtype}, got {tensor.dtype}{way_out}")


def _warn_of_unknown(file: Path, ours: Mapping[str, Any]) -> None:
    # Once a process for the same keys: a matrix of many components must not repeat itself.
    unknown = tuple(sorted(set(ours) - KNOWN_KEYS))
    if unknown and unknown not in _warned:
        _warned.add(unknown)
        warnings.warn(
            printable(
                f"{file}: unknown facts {_some(list(unknown))} are ignored; perhaps a newer timm-compat knows them"
            ),
            stacklevel=4,
        )


def _save_tensors(file: Path, tensors: Tensors, unbounded: Collection[str]) -> str:
    for key, value in tensors.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ConfigError(f"{key}: expected torch.float32, got {value.dtype}; call .float() before saving")
        if not is_sound(key, value, unbounded):
            raise ConfigError(f"{key}: expected finite numbers, got NaN or infinity; training has diverged")
    # Clones part tensors that share storage: safetensors refuses to write those.
    save_file(
        {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, file, {"format": "pt"}
    )
    return file_sha256(file)


def _file_digest(file: Path | bytes, digest: Any) -> str:
    if isinstance(file, bytes):
        digest.update(file)
        return str(digest.hexdigest())
    block = memoryview(bytearray(HASH_BLOCK))
    with file.open("rb", buffering=0) as opened:
        while count := opened.readinto(block):
            digest.update(block[:count])
    return str(digest.hexdigest())


def is_sound(name: str, tensor: Tensor, unbounded: Collection[str] = ()) -> bool:
    """Whether a tensor holds finite numbers only; one whose name is among the unbounded may hold infinity."""
    if not tensor.is_floating_point() or not tensor.numel():
        return bool(tensor.isfinite().all())
    # Least and greatest value: NaN where there is one. In one pass, which costs a fifth of isfinite().all().
    limits = torch.stack(torch.aminmax(tensor))
    return not limits.isnan().any() if name in unbounded else bool(limits.isfinite().all())


def check_format(place: object, number: object, newest: int | None = None) -> None:
    """Refuse what follows rules that this version does not know.

    Args:
        place: for the message.
        number: as it is stated.
        newest: that is read; ``NEWEST_FORMAT`` if None.

    Raises:
        ComponentFileError: no format number, or a newer one.
    """
    newest = newest or NEWEST_FORMAT
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ComponentFileError(f"{place}: expected a format number from 1 to {newest}, got {number!r:.80}")
    if number > newest:
        raise ComponentFileError(
            f"{place}: expected format {newest} or older, got {number}: made by a newer timm-compat; upgrade this one"
        )


def _check_keys(file: Path, found: set[str], expected: set[str]) -> None:
    missing, extra = sorted(expected - found), sorted(found - expected)
    if missing or extra:
        raise ComponentFileError(
            f"{file}: expected {len(expected)} tensors; missing: {_some(missing)}; not expected: {_some(extra)}"
        )


def _check_shape(file: Path, key: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ComponentFileError(f"{file}: {key}: expected shape {expected}, got {found}")


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(names[:most]) or "none"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current

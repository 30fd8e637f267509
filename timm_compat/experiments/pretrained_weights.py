"""timm's pretrained weights within a time limit: a process of its own fetches them, and is ended where it takes longer.

The Hub's client has time limits for a connection and for each read, none for a whole download: a server that sends a
byte now and then holds it for good, and a thread cannot be ended.
"""

import multiprocessing
import signal
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
from safetensors.torch import save_file

from timm_compat.errors import CompatError, HubError, HubTimeoutError
from timm_compat.models.backbone_build import build_model
from timm_compat.storage.files import WEIGHTS_FILE, writing
from timm_compat.storage.hub_calls import TIMEOUT_VARIABLE, is_offline, time_limit, without_token
from timm_compat.storage.reading import HubFiles, cached_commit


def fetch_pretrained(model_names: Sequence[str], folder: Path, **arguments: Any) -> list[Path]:
    """Pretrained timm models as safetensors files, from the Hub's cache or, within ``time_limit()``, from the Hub.

    What was downloaded whole stays in the Hub's cache, and what was not is continued there the next time.

    Args:
        model_names: names for ``timm.create_model``.
        folder: gets a file for every name.
        **arguments: of ``build_model``, such as ``in_chans`` and ``img_size``; the files are of models built with them.

    Returns:
        The files, in the order of the names: each for ``weights=`` beside its name and the same arguments.

    Raises:
        BackboneError: timm has no weights of that name, or cannot fetch them.
        HubError: the Hub cannot be asked, or the process ended early.
        HubTimeoutError: there was not time enough.
        OutputWriteError: the folder cannot be written.
    """
    seconds, names, start = time_limit(), " and ".join(model_names), time.monotonic()
    _ask_for_one(model_names)
    files = [folder / f"{number}.safetensors" for number in range(len(model_names))]
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    jobs = list(zip(model_names, files, strict=True))
    process = spawn.Process(target=_fetch, args=(jobs, arguments, sender), daemon=True)
    process.start()
    sender.close()
    try:
        if not receiver.poll(max(0.0, seconds - (time.monotonic() - start))):
            raise HubTimeoutError(
                f"{names}: the pretrained weights were not here within {seconds:.0f} s; check the network, try again "
                f"later (a download continues where it stopped), or allow more: {TIMEOUT_VARIABLE}=seconds"
            )
        error = receiver.recv()
    except EOFError:
        process.join()
        raise HubError(
            f"{names}: expected the pretrained weights from a process that fetches them, got its end (exit code "
            f"{process.exitcode}); try again"
        ) from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if error is not None:
        raise error
    return files


def _ask_for_one(model_names: Sequence[str]) -> None:
    # Without a network the Hub's client tries every file for half a minute before it gives up; one question tells it.
    configs = [timm.models.get_pretrained_cfg(name, allow_unregistered=True) for name in model_names]
    places = [(config.hf_hub_id or "").partition("@") for config in configs if config is not None]
    missing = [
        (repo_id, revision or None)
        for repo_id, _, revision in places
        if repo_id and cached_commit(repo_id, WEIGHTS_FILE, revision or None) is None
    ]
    if missing and not is_offline():
        repo_id, revision = missing[0]
        HubFiles(repo_id, revision=revision)


def _fetch(jobs: Sequence[tuple[str, Path]], arguments: dict[str, Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; the other one ends this one
    try:
        for name, file in jobs:
            model = build_model(name, pretrained=True, **arguments)
            with writing(file):
                save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, file)
    except CompatError as error:
        sender.send(type(error)(without_token(str(error))))
    else:
        sender.send(None)

"""Limits for building a network from a stranger's config: how large it may be, and how long it may take.

A small config can ask for a huge network: a thousand stages of a thousand blocks, tables of window positions, loops
over pairs of positions. Counting while it is built, on the meta device, stops it in time.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from timm_compat.errors import ComponentFileError

# timm's largest (1.0.31): 7e9 parameters, 0.2 GB of buffers, 2,000 modules, 9 s of one slow core.
MAX_PARAMETERS = 20_000_000_000
MAX_BUFFER_BYTES = 2 * 2**30
MAX_MODULES = 50_000
MAX_SECONDS = 60.0


class _OverBudget(BaseException):
    """Raised inside of a build; no ``except Exception`` of a library's keeps it back."""


@contextmanager
def build_budget() -> Iterator[None]:
    """A block that builds a network and is ended where it gets out of hand.

    Raises:
        ComponentFileError: more parameters, bytes of buffers, modules or seconds than allowed.
    """
    count = _Count()
    hooks = (
        register_module_parameter_registration_hook(count.parameter),
        register_module_buffer_registration_hook(count.buffer),
        register_module_module_registration_hook(count.module),
    )
    try:
        with _alarm(MAX_SECONDS):
            yield
    except _OverBudget as error:
        excess = str(error) or f"more than {MAX_SECONDS:.0f} s to build"
        raise ComponentFileError(
            f"config.json: expected a network that can be built, got one of {excess}; do not trust this component"
        ) from None
    finally:
        for hook in hooks:
            hook.remove()


class _Count:
    """What one thread registers with modules; hooks are called in every thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.parameters = self.buffer_bytes = self.modules = 0

    def parameter(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None and self._is_here():
            self.parameters += value.numel()
            _check(self.parameters, MAX_PARAMETERS, "parameters")

    def buffer(self, module: nn.Module, name: str, value: Tensor | None) -> None:
        if value is not None and self._is_here():
            self.buffer_bytes += value.numel() * value.element_size()
            _check(self.buffer_bytes, MAX_BUFFER_BYTES, "bytes of buffers")

    def module(self, module: nn.Module, name: str, value: nn.Module | None) -> None:
        if self._is_here():
            self.modules += 1
            _check(self.modules, MAX_MODULES, "modules")

    def _is_here(self) -> bool:
        return threading.get_ident() == self.thread


def _check(number: int, most: int, what: str) -> None:
    if number > most:
        raise _OverBudget(f"more than {most:,} {what}")


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    # A loop that registers nothing meets no hook: another thread raises the exception in this one.
    lock, thread, state = threading.Lock(), threading.get_ident(), {"over": False}

    def ring() -> None:
        with lock:
            if not state["over"]:
                state["over"] = True
                _raise_in(thread, _OverBudget)

    timer = threading.Timer(seconds, ring)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        with lock:
            if state["over"]:
                _raise_in(thread, None)  # what was asked for and has not come yet must not come later
            state["over"] = True


def _raise_in(thread: int, error: Any) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread), ctypes.py_object(error) if error is not None else None
    )

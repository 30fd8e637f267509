"""Calls to the Hub: ended after a time limit of ours, tried again where that does no harm, and every failure one of
our errors, without any token in it.
"""

import contextvars
import errno
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotDone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from timm_compat.errors import (
    ConfigError,
    HubAccessError,
    HubConnectionError,
    HubError,
    HubNotFoundError,
    HubTimeoutError,
)
from timm_compat.vocabulary import printable

TIMEOUT_VARIABLE = "TIMM_COMPAT_HUB_TIMEOUT"
DEFAULT_TIMEOUT = 60.0
ATTEMPTS = 5
FIRST_WAIT = 0.5  # seconds before the second attempt; each further wait is twice as long
PASSING_STATUS = (408, 429, 500, 502, 503, 504)
DISK_ERRORS = frozenset(
    {
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EISDIR),
        *(errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO),
    }
)
LEAST_SPEED = 50_000  # bytes per second; a transfer that is slower has failed
OFFLINE = "offline mode is on (HF_HUB_OFFLINE=1); unset it, or read what the cache holds"
LOOKS_LIKE_A_TOKEN = re.compile(r"hf_\w{4,}")
CREDENTIALS = re.compile(r"(?<=://)[^/\s@]*@")  # https://user:password@mirror
RATE_LIMIT = re.compile(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)")  # the Hub's own: seconds until it counts anew

T = TypeVar("T")

_abandoned: list[threading.Thread] = []  # calls that ran out of time and may still be at it


def time_limit(num_bytes: int = 0) -> float:
    """Seconds that a call may take: ``TIMM_COMPAT_HUB_TIMEOUT`` (60 if unset), and more for many bytes.

    Raises:
        ConfigError: the variable holds no positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "") or str(DEFAULT_TIMEOUT)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise ConfigError(f"{TIMEOUT_VARIABLE}: expected a positive number of seconds, got {text!r}")
    return seconds + num_bytes / LEAST_SPEED


def is_offline() -> bool:
    """Whether the user took the Hub's client offline (``HF_HUB_OFFLINE=1``)."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def ask(
    subject: str,
    function: Callable[..., T],
    /,
    *args: Any,
    token: str | bool | None,
    num_bytes: int = 0,
    repeatable: bool = True,
    **kwargs: Any,
) -> T:
    """Call the Hub's client, in a thread so that a hung server cannot hold the caller.

    What may pass (429, a failing server, a dropped connection) is tried again within the time limit, after the wait
    that the Hub asks for.

    Args:
        subject: what the call is about, such as a repository's id; opens every message.
        function: of ``huggingface_hub``; gets ``token=`` and the other arguments.
        token: a token, None for the one that is logged in, False for none.
        num_bytes: how much is transferred.
        repeatable: whether calling twice does what calling once does.

    Raises:
        HubError: one of its kinds, whatever went wrong.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # The base of the client's HTTP errors is that of its transport's: requests, httpx or httpx2, by version.
    # A failed upload comes wrapped in RuntimeError; an answer of another shape ends in one of the last three.
    transport: type[Exception] = HfHubHTTPError.__bases__[0]
    failures = (transport, OSError, RuntimeError, ValueError, LookupError, TypeError)
    seconds = time_limit(num_bytes)
    deadline = time.monotonic() + seconds
    if is_offline():
        raise HubConnectionError(f"{subject}: {OFFLINE}")
    for attempt in range(ATTEMPTS):
        try:
            return _within(subject, seconds, deadline, function, *args, token=token, **kwargs)
        except HubError:
            raise
        except failures as error:
            wait = _wait_before_next(error, attempt, transport, repeatable)
            if wait is None or attempt + 1 == ATTEMPTS or time.monotonic() + wait >= deadline:
                ours = _translated(subject, error, token)
                raise ours from (error if _is_clean(error, token) else None)
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _wait_before_next(error: BaseException, attempt: int, transport: type[Exception], repeatable: bool) -> float | None:
    # Seconds until the call may be tried again; None where it would be in vain, or could do something twice.
    root = _root(error)
    status = _status(root)
    # An abandoned call that tries again closes the session that the client shares among its threads.
    if status is None and _some_are_abandoned() and (repeatable or isinstance(root, RuntimeError)):
        return 0.0
    # A connection that drops may be there again at once; a network that is not there will not come by waiting.
    dropped = (
        status is None and attempt == 0 and any(isinstance(one, (transport, ConnectionError)) for one in _chain(error))
    )
    if not repeatable or not (dropped or status in PASSING_STATUS):
        return None
    wait: float = FIRST_WAIT * 2**attempt
    return max(wait, _asked_to_wait(root))


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or current.__context__


def _asked_to_wait(error: BaseException) -> float:
    # Seconds that the server wants to be left alone; 0 where it says nothing that can be read.
    headers = getattr(getattr(error, "response", None), "headers", {})
    limited = RATE_LIMIT.search(headers.get("RateLimit", ""))
    if limited:
        return float(limited[1])
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return 0.0


def _within(
    subject: str, seconds: float, deadline: float, function: Callable[..., T], /, *args: Any, **kwargs: Any
) -> T:
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            future.set_result(context.run(function, *args, **kwargs))
        except BaseException as error:  # carried over to the thread that waits
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True, name="timm-compat-hub")
    thread.start()
    try:
        return future.result(max(0.0, deadline - time.monotonic()))
    except NotDone:
        if future.done():  # the client's own
            raise
        _abandoned.append(thread)
        raise HubTimeoutError(
            f"{subject}: the Hub gave no complete answer within {seconds:.0f} s; check the network, try again "
            f"later, or allow more: {TIMEOUT_VARIABLE}=seconds"
        ) from None


def _some_are_abandoned() -> bool:
    _abandoned[:] = [thread for thread in _abandoned if thread.is_alive()]
    return bool(_abandoned)


def _translated(subject: str, error: BaseException, token: str | bool | None) -> HubError:
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RevisionNotFoundError,
    )

    cause = _root(error)
    status = _status(cause)
    said = without_token(_brief(cause), token)
    if isinstance(cause, OfflineModeIsEnabled):
        return HubConnectionError(f"{subject}: {OFFLINE}")
    if isinstance(cause, GatedRepoError):
        return HubAccessError(
            f"{subject}: it is gated ({status}): accept its conditions on its page at {endpoint()}, or ask "
            "the owner for access; then log in (hf auth login), set HF_TOKEN, or pass token="
        )
    if status == 401:
        return HubAccessError(
            f"{subject}: the Hub asks for a valid token (401): it is private or does not exist, or the token is wrong; "
            "log in (hf auth login), set HF_TOKEN, or pass token="
        )
    if status == 403:
        return HubAccessError(
            f"{subject}: this token lacks the right (403: {said}); ask the owner for access, or use a token that may "
            "write there"
        )
    if isinstance(cause, RevisionNotFoundError):
        return HubNotFoundError(f"{subject}: no such revision (404); name a branch, a tag or a commit that it has")
    if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
        return HubNotFoundError(f"{subject}: no such file (404: {said}); is it a component of timm-compat?")
    if status == 404:
        return HubNotFoundError(
            f"{subject}: the Hub shows this token no such repository (404); check the spelling, or ask for access "
            "where it is private"
        )
    if status == 412:
        return HubError(f"{subject}: somebody else pushed meanwhile (412), so nothing was changed; push again")
    if status is not None:
        kind = HubConnectionError if status >= 500 or status == 429 else HubError
        return kind(f"{subject}: the Hub answered {status} ({said}); try again later")
    if isinstance(cause, OSError) and cause.errno in DISK_ERRORS:
        return HubError(
            f"{subject}: a file of the Hub's cache cannot be read or written ({said}); check its rights and the "
            "room on its disk, or choose another place: HF_HOME, or cache_dir="
        )
    if isinstance(cause, ValueError):
        return HubError(f"{subject}: the Hub's client refused: {said}")
    if "Timeout" in type(cause).__name__:
        return HubTimeoutError(f"{subject}: the Hub at {endpoint()} does not answer ({said}); try again later")
    return HubConnectionError(
        f"{subject}: no sound answer from the Hub at {endpoint()} ({said}); check the network, HF_ENDPOINT and "
        "proxies, or try again later (an upload that fails over Xet may work with HF_HUB_DISABLE_XET=1)"
    )


def endpoint() -> str:
    """The Hub's address (``HF_ENDPOINT``), without the user and password that it may hold."""
    from huggingface_hub import constants

    return CREDENTIALS.sub("", str(constants.ENDPOINT))


def without_token(text: str, token: str | bool | None = None) -> str:
    """The text with every token and password that is at hand, and all that looks like one, struck out."""
    for secret in _secrets(token):
        text = text.replace(secret, "***")
    return LOOKS_LIKE_A_TOKEN.sub("***", CREDENTIALS.sub("", text))


def _secrets(token: str | bool | None) -> list[str]:
    from huggingface_hub import get_token

    return [secret for secret in (token, get_token()) if isinstance(secret, str) and secret]


def _is_clean(error: BaseException, token: str | bool | None) -> bool:
    texts = [f"{one!r} {one}" for one in _chain(error)]
    return all(without_token(text, token) == text for text in texts)


def _root(error: BaseException) -> BaseException:
    # The client wraps what the server said in errors of its own.
    current: BaseException | None = error
    while current is not None:
        if _status(current) is not None:
            return current
        current = current.__cause__
    return error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ is not None else error


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _brief(error: BaseException) -> str:
    said = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return printable(str(said))[:200]

"""Patience with the network: what goes wrong in passing is asked for again, with a word.

All that reads the Hugging Face hub goes through one HTTP client of this process: its files, ``datasets``,
transformers and lm-eval. Here it gets pauses that grow, and one limit to them all; what lies elsewhere on the
web is read with the same.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from time import monotonic, sleep
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from adept_ray.data.assets import print_status

PATIENCE_S = 150.0  # seconds of faults in a row; the client itself adds half a minute
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
PASSING_STATUS = frozenset({408, 429, 500, 502, 503, 504})
# What HTTP clients call an answer that didn't come or broke off. A refused connection is none of them: there
# the cache is looked into at once.
PASSING_ERRORS = frozenset({"TimeoutException", "ReadError", "WriteError", "RemoteProtocolError"})
WAITS_ASKED = ("Retry-After", "RateLimit")  # headers that would let the client wait for as long as they say

T = TypeVar("T")

_IMPATIENT: ContextVar[bool] = ContextVar("_IMPATIENT", default=False)


class Response(Protocol):
    """What is looked at of an answer."""

    status_code: int

    @property
    def headers(self) -> Any:
        """By name, of which some are taken away."""

    @property
    def url(self) -> object:
        """Where it came from in the end, after redirects."""

    def close(self) -> None:
        """Give its connection back."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong in passing."""

    what: str
    """In words."""
    wait: float = 0.0
    """Seconds that the server asks to wait for."""


def read_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server's answer asks to wait for; 0 if it doesn't say."""
    told = headers.get("Retry-After", "")
    return float(told) if told.isdigit() else 0.0


class Patience:
    """How long this process has waited for the hub, or for the web, since either last answered."""

    def __init__(self) -> None:
        self.say: Callable[[str], None] = print_status
        """Hears of every pause."""
        self._lock = threading.Lock()  # files are fetched by several threads
        self._began: float | None = None  # when the first of the faults in a row came; time.monotonic
        self._last = self._said = float("-inf")  # when the last came, and when a pause was last said

    def keep_asking(self, ask: Callable[[], Response]) -> Response:
        """What `ask` returns or raises, once it is no passing fault or patience is at its end."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                response = ask()
            except Exception as problem:
                asked: Any = getattr(problem, "request", None)
                if not is_passing(problem) or not self._wait(pause, asked.url, type(problem).__name__):
                    raise
            else:
                if response.status_code not in PASSING_STATUS:
                    self._began = None
                    return response
                longer = max(pause, read_wait(response.headers))
                if not self._wait(longer, response.url, f"answers {response.status_code}"):
                    for name in WAITS_ASKED:
                        response.headers.pop(name, None)
                    return response
                response.close()
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    def keep_trying(
        self, ask: Callable[[], T], url: str, find_fault: Callable[[Exception], Fault | None]
    ) -> T:
        """What `ask` returns or raises, once that is no passing fault or patience is at its end."""
        pause = FIRST_PAUSE_S
        while True:
            try:
                found = ask()
            except Exception as problem:
                fault = find_fault(problem)
                if not fault or not self._wait(max(pause, fault.wait), url, fault.what):
                    raise
            else:
                self._began = None
                return found
            pause = min(LONGEST_PAUSE_S, 2 * pause)

    def _wait(self, pause: float, url: object, fault: str) -> bool:
        """Sleep, with a line about it; False, at once, where that would be longer than patience lasts."""
        with self._lock:
            now = monotonic()
            if self._began is None or now - self._last > PATIENCE_S:  # an earlier row is long over
                self._began = now
            self._last = now
            if _IMPATIENT.get() or now + pause > self._began + PATIENCE_S:
                return False
            if now - self._said >= FIRST_PAUSE_S:  # other threads meet the same fault
                self._said = now
                self.say(f"{urlsplit(str(url)).netloc}: {fault}; it is asked again in {pause:.0f} s")
        sleep(pause)
        return True


PATIENCE = Patience()


def is_passing(problem: BaseException) -> bool:
    """Whether an exception says that an answer didn't come, or broke off."""
    return any(kind.__name__ in PASSING_ERRORS for kind in type(problem).__mro__)


@contextmanager
def ask_once() -> Iterator[None]:
    """Try nothing again inside: there is something else to go by."""
    before = _IMPATIENT.set(True)
    try:
        yield
    finally:
        _IMPATIENT.reset(before)


@contextmanager
def stay_offline() -> Iterator[None]:
    """Let the hub's client and ``datasets`` look into their caches alone inside."""
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@functools.cache
def use_patient_client() -> None:
    """Make the hub's client of this process patient and silent; again it does nothing."""
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.utils import disable_progress_bars, logging
    from huggingface_hub.utils._http import default_client_factory

    def build_client() -> Any:
        client = default_client_factory()
        send: Callable[..., Any] = client.send

        def send_patiently(request: Any, **how: Any) -> Any:
            return PATIENCE.keep_asking(lambda: send(request, **how))

        client.send = send_patiently  # type: ignore[method-assign]
        return client

    set_client_factory(build_client)
    if "HF_HUB_VERBOSITY" not in os.environ and not constants.HF_DEBUG:
        logging.set_verbosity_error()  # it says each pause once more, in words of its own
    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:
        disable_progress_bars()  # ours show the same, and only where somebody sees them

"""Faults of a remote, and for how long a request is tried again.

Nothing here knows a remote: whoever sends the requests judges their errors (``Judge``).
"""

import errno
import http.client
import random
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

Returned = TypeVar("Returned")
MAX_TRIES = 7  # of one request; an outage of everything ends earlier, by the policy's patience
LOCAL_ERRNOS = {  # what the operating system says of files here, which no other try changes
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC),
    *(errno.EDQUOT, errno.EROFS, errno.EISDIR, errno.ENOTDIR),
}
NETWORK_ERRORS: tuple[type[Exception], ...] = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class Fault:
    """What went wrong, in words for people.

    transient: worth another try. affects_all: every other object would meet it too. not_found: what was asked for does
    not exist (any more).
    """

    message: str
    transient: bool = False
    affects_all: bool = False
    not_found: bool = False


Judge = Callable[[Exception], Fault | None]  # None: no fault of a remote, but a bug of our own


class RemoteError(Exception):
    """A request that was given up, with its fault."""

    def __init__(self, fault: Fault):
        super().__init__(fault.message)
        self.fault = fault


class RetryPolicy:
    """Tries transient faults again, with growing pauses, for a bounded time.

    All in seconds. backoff: the first pause, doubled with each try up to 32 times itself. patience: how long nothing at
    all may succeed; after that it gives up for good (``RemoteError`` with ``affects_all``). timeout: how long a remote
    may be silent, which the stores see to.
    """

    def __init__(self, backoff: float, patience: float, timeout: float):
        self.backoff, self.patience, self.timeout = backoff, patience, timeout
        self.failing_since: float | None = None  # monotonic

    def call(self, request: Callable[[], Returned], judge: Judge) -> Returned:
        """Make a request until it succeeds; raises RemoteError, and what is no fault of a remote as it came."""
        tries = 0
        while True:
            try:
                result = request()
            except Exception as error:
                pause = self.backoff * 2 ** min(tries, 5) * random.uniform(0.5, 1)  # clones must not keep in step
                tries += 1
                self.check(error, judge, pause, last=tries == MAX_TRIES)
                time.sleep(pause)
            else:
                self.failing_since = None
                return result

    def check(self, error: Exception, judge: Judge, pause: float, last: bool) -> None:
        """Return where it is worth pausing and trying again, else raise."""
        fault = None if isinstance(error, RemoteError) else judge(error)  # RemoteError: a request within was given up
        if not fault:
            raise error
        if not fault.transient:
            raise RemoteError(fault) from error
        now = time.monotonic()
        self.failing_since = now if self.failing_since is None else self.failing_since
        if now + pause - self.failing_since > self.patience:
            raise RemoteError(replace(fault, affects_all=True)) from error
        if last:
            raise RemoteError(fault) from error


def judge_connection(error: Exception, network_errors: tuple[type[Exception], ...] = NETWORK_ERRORS) -> Fault | None:
    """The fault that the operating system or the network had, if it is behind this exception.

    network_errors: the types that mean a broken connection; a client library may have more of them.
    """
    for cause in causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Fault(f"the server's certificate is not trusted ({cause})", affects_all=True)
        if isinstance(cause, OSError) and cause.errno in LOCAL_ERRNOS:
            message = f"{cause.strerror}: {cause.filename or ''}".rstrip(": ")
            return Fault(message, affects_all=cause.errno == errno.ENOSPC)
        if isinstance(cause, network_errors):
            reason = f"{type(cause).__name__}: {str(cause) or 'no reply'}"
            return Fault(f"the connection failed ({reason})", transient=True)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it."""
    while error:
        yield error
        error = error.__cause__ or error.__context__

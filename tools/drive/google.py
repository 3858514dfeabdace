"""What can go wrong between us and a remote: what of it passes by itself, and what a person can do about the rest."""

import errno
import http.client
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

Result = TypeVar("Result")
TRIES = 7  # for one request; an outage of everything ends earlier, by Patience.limit
HERE = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EISDIR, errno.ENOTDIR}
CONSOLE = "https://console.cloud.google.com"
API_OFF = (
    f"the Drive API is off in the project of your client: turn it on at {CONSOLE}/apis/library/drive.googleapis.com"
)
SERVICE_ACCOUNT = (
    "a service account has no storage of its own on a personal Drive: put the folder on a shared drive and add the "
    "account there as Content manager, or sign in with your own client (--client-id)"
)
TOKENS = {  # what the sign-in says, as a pattern, and the remedy; the first that matches counts
    r"Invalid JWT Signature|account not found|deserialize|DECODER|PEM": (
        f"Google does not accept the service account's key: make a new one at {CONSOLE}/iam-admin/serviceaccounts"
    ),
    r"Invalid JWT": "Google does not accept the time of this machine: set its clock",
    r"invalid_client|unauthorized_client|deleted_client": (
        f"Google does not accept the client id or its secret: copy both again from {CONSOLE}/apis/credentials"
    ),
    r"access_denied|rejected": (
        "the sign-in was refused: allow the access that is asked for; where Google itself refuses, publish the OAuth "
        f"client 'In production' at {CONSOLE}/auth/audience"
    ),
    r"Malformed auth code|No code": "the address is not that of the last page, or it is used up: connect again",
    r"invalid_grant|No refresh_token": (
        "the sign-in has expired or was revoked: run `python -m tools.drive connect` (a client in 'Testing' loses it "
        f"after 7 days: publish it 'In production' at {CONSOLE}/auth/audience)"
    ),
    r"^$": "no port is free for the browser to come back to: use --no-browser",
    r"Non interactive": "not signed in on this machine: run `python -m tools.drive connect`",
}
REASONS = {  # what Drive gives as reason with 403
    "storageQuotaExceeded": "the Drive is full: empty its trash, or free space as `python -m tools.drive check` says",
    "teamDriveFileLimitExceeded": "the shared drive holds as many files as it can: prune it with `dvc gc --cloud`",
    "dailyLimitExceeded": "the client's requests of today are used up: go on tomorrow",
    "accessNotConfigured": API_OFF,
    "insufficientPermissions": "the sign-in does not reach Drive: connect again, and tick the box for Google Drive",
    "insufficientFilePermissions": "the folder may only be read: ask its owner to make you an Editor",
}
TRANSIENT = {"userRateLimitExceeded", "rateLimitExceeded", "sharingRateLimitExceeded", "backendError", "internalError"}


@dataclass(frozen=True)
class Trouble:
    """One fault in words. ``passes``: worth another try; ``stops``: other files would meet it too; ``gone``: a 404."""

    text: str
    passes: bool = False
    stops: bool = False
    gone: bool = False


class Failed(Exception):
    """Given up, by its trouble."""

    def __init__(self, trouble: Trouble):
        super().__init__(trouble.text)
        self.trouble = trouble


class Patience:
    """Tries again what may pass, with growing pauses, each fault and each outage for a bounded time.

    ``backoff`` is the first pause in seconds, doubled up to 32 times itself. ``limit`` is for how many seconds on end
    nothing may succeed; then it gives up for good (``Failed`` with ``stops``).
    """

    def __init__(self, backoff: float, limit: float):
        self.backoff, self.limit, self.since = backoff, limit, None

    def call(self, work: Callable[[], Result]) -> Result:
        """Do the work; raises Failed, or what is no fault of a remote as it came."""
        for attempt in range(TRIES):
            try:
                result = work()
            except Exception as error:
                pause = self.backoff * 2 ** min(attempt, 5) * random.uniform(0.5, 1)  # apart from other clones'
                self.bear(error, pause, last=attempt == TRIES - 1)
                time.sleep(pause)
            else:
                self.since = None
                return result

    def bear(self, error: Exception, pause: float, last: bool) -> None:
        """Return where it is worth waiting and trying again, else raise."""
        trouble = None if isinstance(error, Failed) else explain(error)  # Failed: a request within was given up
        if not trouble:
            raise error
        if not trouble.passes:
            raise Failed(trouble) from error
        now = time.monotonic()
        self.since = now if self.since is None else self.since
        if now + pause - self.since > self.limit:
            raise Failed(replace(trouble, stops=True)) from error
        if last:
            raise Failed(trouble) from error


def explain(error: Exception) -> Trouble | None:
    """The trouble behind an exception of DVC, PyDrive2, Google's client or the network; None for our own mistakes."""
    from googleapiclient.errors import HttpError
    from httplib2 import HttpLib2Error
    from oauth2client.client import Error as TokenError
    from pydrive2.auth import AuthError
    from pydrive2.fs.spec import GDriveAuthError

    causes = list(chain(error))
    for cause in causes:
        if isinstance(cause, HttpError):
            return explain_answer(cause.resp.status, cause.reason, reason_of(cause))
        if isinstance(cause, TokenError | AuthError):
            return explain_sign_in(str(cause))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            text = "the connection's certificate is not trusted: behind a proxy that opens TLS, set HTTPLIB2_CA_CERTS"
            return Trouble(f"{text} to its authority's file", stops=True)
        if isinstance(cause, OSError) and cause.errno in HERE:
            return Trouble(f"{cause.strerror}: {cause.filename or ''}".rstrip(": "), stops=cause.errno == errno.ENOSPC)
        if isinstance(cause, OSError | HttpLib2Error | http.client.HTTPException):
            words = str(cause) or "no reply"
            return Trouble(f"the connection failed ({type(cause).__name__}: {words})", passes=True)
    return explain_sign_in(str(causes[-1])) if isinstance(error, GDriveAuthError) else None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those behind it."""
    while error:
        yield error
        error = error.__cause__ or error.__context__


def explain_answer(status: int, message: str, reason: str) -> Trouble:
    """What an HTTP answer other than success means."""
    if status in (408, 429) or status >= 500 or reason in TRANSIENT:
        return Trouble(f"Drive answered {status} {reason or 'without a reason'}", passes=True)
    if "Service Accounts do not have storage" in message:
        return Trouble(SERVICE_ACCOUNT, stops=True)
    if reason in REASONS:
        return Trouble(REASONS[reason], stops=True)
    if status == 401:
        return Trouble(TOKENS[r"invalid_grant|No refresh_token"], stops=True)
    return Trouble(f"Drive answered {status} {reason}: {message}", gone=status == 404)


def reason_of(error) -> str:
    """Drive's one word for an error; empty where its answer was not in JSON."""
    details = error.error_details if isinstance(error.error_details, list) else []
    return next((entry["reason"] for entry in details if isinstance(entry, dict) and "reason" in entry), "")


def explain_sign_in(message: str) -> Trouble:
    """What a failed sign-in means; Google's answers without JSON pass by themselves."""
    for pattern, remedy in TOKENS.items():
        if re.search(pattern, message):
            return Trouble(remedy, stops=True)
    if re.search(r"Invalid response:? (429|5\d\d)|internal_failure|server_error|temporarily", message):
        return Trouble(f"the sign-in failed ({message})", passes=True)
    return Trouble(f"the sign-in failed ({message}): run `python -m tools.drive connect`", stops=True)

"""What the errors of Google Drive, its sign-in and its client libraries mean, and what a person can do about them."""

import importlib.util
import os
import re
import ssl

from stages.runtime.errors import UserError
from tools.drive.retry import NETWORK_ERRORS, Fault, causes, judge_connection

CONSOLE = "https://console.cloud.google.com"
API_DISABLED = (
    f"the Drive API is disabled in your client's project: enable it at {CONSOLE}/apis/library/drive.googleapis.com"
)
NO_SERVICE_STORAGE = (
    "a service account has no storage of its own on a personal Drive: put the folder on a shared drive and add the "
    "account there as Content manager, or sign in with your own client (--client-id)"
)
SIGN_IN_EXPIRED = (
    "the sign-in has expired or was revoked: run `python -m tools.drive connect` (a client in 'Testing' loses it "
    f"after 7 days: publish it 'In production' at {CONSOLE}/auth/audience)"
)
UNTRUSTED_CERTIFICATE = (
    "the server's certificate is not trusted: behind a proxy that intercepts TLS, set HTTPLIB2_CA_CERTS to the file "
    "with its certificate authority"
)
SIGN_IN_REMEDIES = {  # by a pattern in what the sign-in says; the first that matches counts
    r"Invalid JWT Signature|account not found|deserialize|DECODER|PEM": (
        f"Google does not accept the service account's key: create a new one at {CONSOLE}/iam-admin/serviceaccounts"
    ),
    r"Invalid JWT": "Google does not accept the time on this machine: set its clock",
    r"invalid_client|unauthorized_client|deleted_client": (
        f"Google does not accept the client id or its secret: copy both again from {CONSOLE}/apis/credentials"
    ),
    r"access_denied|rejected": (
        "the sign-in was refused: allow the access that is asked for; where Google itself refuses, publish the OAuth "
        f"client 'In production' at {CONSOLE}/auth/audience"
    ),
    r"Malformed auth code|No code": (
        "the pasted address is not that of the last page, or its code was used before: connect again"
    ),
    r"invalid_grant|No refresh_token": SIGN_IN_EXPIRED,
    r"^$": "no port is free for the browser to return to: use --no-browser",
    r"Non interactive": "not signed in on this machine: run `python -m tools.drive connect`",
}
RESPONSE_REMEDIES = {  # by the reason that Drive gives with status 403
    "storageQuotaExceeded": "the Drive is full: empty its trash, or free space as `python -m tools.drive check` says",
    "teamDriveFileLimitExceeded": (
        "the shared drive has reached its maximum number of files: prune it with `dvc gc --cloud --all-commits`"
    ),
    "dailyLimitExceeded": "the client has used up its requests for today: continue tomorrow",
    "accessNotConfigured": API_DISABLED,
    "insufficientPermissions": (
        "the sign-in does not include access to Drive: connect again, and tick the box for Google Drive"
    ),
    "insufficientFilePermissions": "this account can only read the folder: ask its owner to make it an Editor",
}
TRANSIENT_REASONS = {
    *("userRateLimitExceeded", "rateLimitExceeded", "sharingRateLimitExceeded"),
    *("backendError", "internalError"),
}


def judge_error(error: Exception) -> Fault | None:
    """The fault behind an exception of Google's client, PyDrive2, DVC or the network; None for a bug of our own."""
    from googleapiclient.errors import HttpError
    from httplib2 import HttpLib2Error
    from oauth2client.client import Error as TokenError
    from pydrive2.auth import AuthError
    from pydrive2.fs.spec import GDriveAuthError

    chain = list(causes(error))
    for cause in chain:
        if isinstance(cause, HttpError):
            return judge_response(cause.resp.status, cause.reason, error_reason(cause))
        if isinstance(cause, TokenError | AuthError):
            return judge_sign_in(str(cause))
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Fault(UNTRUSTED_CERTIFICATE, affects_all=True)
    if fault := judge_connection(error, (*NETWORK_ERRORS, HttpLib2Error)):
        return fault
    return judge_sign_in(str(chain[-1])) if isinstance(error, GDriveAuthError) else None


def judge_response(status: int, message: str, reason: str) -> Fault:
    """What an HTTP response other than success means."""
    if status in (408, 429) or status >= 500 or reason in TRANSIENT_REASONS:
        return Fault(f"Drive answered {status} {reason or 'without a reason'}", transient=True)
    if "Service Accounts do not have storage" in message:
        return Fault(NO_SERVICE_STORAGE, affects_all=True)
    if reason in RESPONSE_REMEDIES:
        return Fault(RESPONSE_REMEDIES[reason], affects_all=True)
    if status == 401:
        return Fault(SIGN_IN_EXPIRED, affects_all=True)
    return Fault(f"Drive answered {status} {reason}: {message}", not_found=status == 404)


def error_reason(error) -> str:
    """Drive's one word for an HttpError; empty where its response was not in JSON."""
    details = error.error_details if isinstance(error.error_details, list) else []
    return next((entry["reason"] for entry in details if isinstance(entry, dict) and "reason" in entry), "")


def judge_sign_in(message: str) -> Fault:
    """What a failed sign-in means; Google's responses without JSON are transient."""
    for pattern, remedy in SIGN_IN_REMEDIES.items():
        if re.search(pattern, message):
            return Fault(remedy, affects_all=True)
    if re.search(r"Invalid response:? (429|5\d\d)|internal_failure|server_error|temporarily", message):
        return Fault(f"the sign-in failed ({message})", transient=True)
    return Fault(f"the sign-in failed ({message}): run `python -m tools.drive connect`", affects_all=True)


def check_proxy() -> None:
    """Raise UserError where a proxy is set that Google's client would silently ignore."""
    if (os.environ.get("https_proxy") or os.environ.get("HTTPS_PROXY")) and not importlib.util.find_spec("socks"):
        raise UserError("https_proxy is set, but Google's client uses it only with PySocks: pip install PySocks")

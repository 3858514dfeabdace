"""Signing in to Google Drive, and what of it is written where."""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlparse

import click

from stages.runtime.errors import UserError
from stages.runtime.files import written_aside
from tools.drive.google import CONSOLE, NO_SERVICE_STORAGE, check_proxy, judge_error, judge_sign_in
from tools.drive.retry import RemoteError, RetryPolicy
from tools.drive.stores import DriveStore

if TYPE_CHECKING:
    from dvc.repo import Repo

FOLDER_LINK = (
    r"(?:https://drive\.google\.com/(?:\S*/folders/|open\?id=)|gdrive://)?"
    r"(?P<id>[\w-]{5,})(?P<below>/[^?#]+)?(?:[?#&].*)?"
)
REDIRECT_PORTS = [8080, 8090, *range(8100, 8110)]  # that the browser returns to; a desktop client may take any
TESTING_WARNING = (
    "This sign-in ends after 7 days, because the OAuth client is in 'Testing': publish it 'In production' at "
    f"{CONSOLE}/auth/audience, and connect again."
)
Settings = Mapping[str, Any]  # of a remote, as DVC's configuration has them: texts and booleans


def connect_folder(
    folder: str | None,
    name: str,
    policy: RetryPolicy,
    *,
    service_account: Path | None = None,
    client_id: str | None = None,
    client_secret: str | None = None,
    browser: bool = True,
) -> str:
    """Make a Drive folder the default remote of the repository here; returns what was written where, for people.

    folder: its link or id; without it the one that the configuration has. service_account: its key file, with which to
    sign in instead of a client. browser: sign in with this machine's, not with a link to be opened elsewhere. Raises
    UserError and RemoteError where anything is wrong; the configuration is then as it was.
    """
    from dvc.repo import Repo

    check_proxy()
    with Repo() as repo:
        current = repo.config["remote"].get(name, {})
        shared = shared_settings(folder, current)
        check_ignored(repo, Path(repo.config.files["local"]))
        signing_in: AbstractContextManager[tuple[Settings, str]] = nullcontext(({}, ""))
        if service_account:
            private = service_account_settings(repo, service_account.expanduser().resolve())
        else:
            private = client_settings(repo, current, client_id, client_secret, name)
            signing_in = signed_in(private, browser)
    with signing_in as (trial, warning), Repo(config={"remote": {name: {**shared, **private, **trial}}}) as repo:
        account = check_access(DriveStore(repo.cloud.get_remote(name, "push"), policy))
        write_config(repo, name, shared, private)
    return summary(account, name, shared, warning)


def shared_settings(folder: str | None, current: Settings) -> Settings:
    """What goes into .dvc/config, for everybody; raises UserError where it does not say which folder."""
    if not folder and not str(current.get("url", "")).startswith("gdrive://"):
        raise UserError("which folder? Give the link that Drive shows for it")
    match = re.fullmatch(FOLDER_LINK, folder or current["url"])
    if not match:
        raise UserError(f"{folder} is neither a link to a Drive folder nor the id of one")
    return {"url": f"gdrive://{match['id']}{match['below'] or ''}", "gdrive_trash_only": True}


def service_account_settings(repo: "Repo", key: Path) -> Settings:
    """What goes into .dvc/config.local for a service account; makes its key private to the user."""
    advice = "create a key of the type JSON on the service account's page"
    try:
        content = json.loads(key.read_text(encoding="utf-8"))
        complete = {"client_email", "private_key"} <= content.keys() and content.get("type") == "service_account"
    except FileNotFoundError:
        raise UserError(f"{key} is missing: {advice}") from None
    except (ValueError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{key} is not the key of a service account: {advice}")
    check_ignored(repo, key)
    key.chmod(0o600)
    return {"gdrive_use_service_account": True, "gdrive_service_account_json_file_path": str(key)}


def client_settings(
    repo: "Repo", current: Settings, client_id: str | None, client_secret: str | None, name: str
) -> Settings:
    """What goes into .dvc/config.local for a person's own client; asks for a secret that is not known."""
    if not client_id and not current.get("gdrive_client_id"):
        raise UserError(
            "give --client-id of your own OAuth client, or --service-account: tools/drive/README.md says how to get one"
        )
    if not client_id:
        client_secret = client_secret or current["gdrive_client_secret"]
    credentials = Path(repo.dvc_dir, "tmp", f"{name}-credentials.json")
    check_ignored(repo, credentials)
    return {
        "gdrive_use_service_account": False,  # explicitly, for an earlier connection may have set it
        "gdrive_client_id": client_id or current["gdrive_client_id"],
        "gdrive_client_secret": client_secret or click.prompt("Client secret (not shown)", hide_input=True, err=True),
        "gdrive_user_credentials_file": str(credentials),
    }


def check_ignored(repo: "Repo", path: Path) -> None:
    """Raise UserError where Git would commit a secret."""
    from dvc.scm import NoSCM

    inside = path.is_relative_to(repo.root_dir)
    if inside and not isinstance(repo.scm, NoSCM) and not repo.scm.is_ignored(str(path)):
        raise UserError(f"{path} holds a secret, and Git does not ignore it: move it out of the repository")


@contextmanager
def signed_in(private: Settings, browser: bool) -> Iterator[tuple[Settings, str]]:
    """Sign in as a person; gives the settings to try it with, and a warning or nothing.

    The credentials take their place when the block ends well; until then an earlier sign-in stays. Raises RemoteError.
    """
    credentials = Path(private["gdrive_user_credentials_file"])
    credentials.parent.mkdir(parents=True, exist_ok=True)
    with written_aside(credentials) as part:
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        warning = sign_in(private["gdrive_client_id"], private["gdrive_client_secret"], part, browser)
        yield {"gdrive_user_credentials_file": str(part)}, warning


def sign_in(client_id: str, client_secret: str, file: Path, browser: bool) -> str:
    """Write a credentials file; returns a warning where the sign-in will not last. Raises RemoteError."""
    from pydrive2.auth import GoogleAuth
    from pydrive2.fs.spec import COMMON_SETTINGS

    uris = {"auth_uri": "https://accounts.google.com/o/oauth2/auth", "token_uri": "https://oauth2.googleapis.com/token"}
    uris |= {"revoke_uri": "https://oauth2.googleapis.com/revoke", "redirect_uri": ""}
    client = {"client_id": client_id, "client_secret": client_secret, **uris}
    saved = {"save_credentials": True, "save_credentials_backend": "file", "save_credentials_file": str(file)}
    own = {"client_config_backend": "settings", "client_config": client}
    auth = GoogleAuth(settings={**COMMON_SETTINGS, **saved, **own})
    os.environ.pop("GDRIVE_NON_INTERACTIVE", None)  # this command asks a person by its nature
    try:
        if browser:
            auth.LocalWebserverAuth(port_numbers=REDIRECT_PORTS)
        else:
            auth.GetFlow()
            auth.flow.redirect_uri = f"http://localhost:{REDIRECT_PORTS[0]}/"
            auth.Auth(ask_code(auth.GetAuthUrl()))
            auth.SaveCredentials()
    except Exception as error:
        if not (fault := judge_error(error)):
            raise
        raise RemoteError(fault) from None
    return TESTING_WARNING if "refresh_token_expires_in" in (auth.credentials.token_response or {}) else ""


def ask_code(link: str) -> str:
    """Have a person open a link anywhere, and read the code out of the address that it ends at."""
    click.echo(f"Open this link in a browser on any machine, and sign in:\n\n    {link}\n")
    click.echo("It ends at a page that cannot be shown (http://localhost…); its address contains a code for one use.")
    address = click.prompt("Paste that address", err=True).strip()
    query = parse_qs(urlparse(address).query)
    if "error" in query:
        raise RemoteError(judge_sign_in(query["error"][0]))
    return query.get("code", [address])[0]


def check_access(store: DriveStore) -> str:
    """Who is signed in; raises UserError where they cannot write to the folder."""
    account = store.account()
    if store.is_service_account and not store.shared_drive:
        raise UserError(NO_SERVICE_STORAGE)
    if not store.writable:
        raise UserError(f"{account} can only read the folder: ask its owner to make that account an Editor")
    return account


def write_config(repo: "Repo", name: str, shared: Settings, private: Settings) -> None:
    """Write both halves of a remote's configuration; the one with secrets is for the user alone to read."""
    if "gdrive_user_credentials_file" in private:  # DVC keeps it relative to .dvc, so that the repository can be moved
        private = {**private, "gdrive_user_credentials_file": os.path.relpath(private["gdrive_user_credentials_file"])}
    with repo.config.edit("repo") as config:
        config["remote"][name] = dict(shared)
        config["core"]["remote"] = name
    mask = os.umask(0o077)
    try:
        with repo.config.edit("local") as config:
            config["remote"][name] = dict(private)
    finally:
        os.umask(mask)
    Path(repo.config.files["local"]).chmod(0o600)


def summary(account: str, name: str, shared: Settings, warning: str) -> str:
    """What was written where."""
    lines = [
        f"{account} can write to {shared['url']}",
        f".dvc/config        the remote {name}, now the default: commit it",
        ".dvc/config.local  how you sign in: secret, ignored by Git, readable by you alone",
    ]
    return "\n".join(lines + [warning] * bool(warning))

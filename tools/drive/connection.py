"""Signing in to Google Drive, and what of it is written where."""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlparse

import click

from stages.runtime.errors import UserError
from tools.drive.google import SERVICE_ACCOUNT, Failed, explain, explain_sign_in

if TYPE_CHECKING:
    from dvc.repo import Repo

    from tools.drive.stores import DriveStore

LINK = r"(?:https://drive\.google\.com/(?:\S*/folders/|open\?id=)|gdrive://)?(?P<id>[\w-]{5,})(?P<below>/[^?#]+)?(?:[?#&].*)?"
PORTS = [8080, 8090, *range(8100, 8110)]  # where the browser comes back to; a desktop client may take any
TESTING = (
    "This sign-in ends after 7 days, for the OAuth client is in 'Testing': publish it 'In production' at "
    "https://console.cloud.google.com/auth/audience, and connect again."
)
Settings = dict[str, str | bool]  # of a remote, as DVC's configuration has them


def shared_settings(folder: str | None, known: Settings) -> Settings:
    """What goes into .dvc/config, for everybody; raises UserError where the folder cannot be told."""
    if not folder and not str(known.get("url", "")).startswith("gdrive://"):
        raise UserError("which folder? Give the link that Drive shows for it")
    match = re.fullmatch(LINK, folder or known["url"])
    if not match:
        raise UserError(f"{folder} is no link to a Drive folder, nor its id")
    return {"url": f"gdrive://{match['id']}{match['below'] or ''}", "gdrive_trash_only": True}


def service_settings(repo: "Repo", key: Path) -> Settings:
    """What goes into .dvc/config.local for a service account; makes its key private to the user."""
    try:
        content = json.loads(key.read_text(encoding="utf-8"))
        complete = {"client_email", "private_key"} <= content.keys() and content.get("type") == "service_account"
    except FileNotFoundError:
        raise UserError(f"{key} is missing: make a key in the service account's page, as JSON") from None
    except (ValueError, AttributeError):
        complete = False
    if not complete:
        raise UserError(f"{key} is no service account's key: make one in the service account's page, as JSON")
    check_ignored(repo, key)
    key.chmod(0o600)
    return {"gdrive_use_service_account": True, "gdrive_service_account_json_file_path": str(key)}


def client_settings(repo: "Repo", known: Settings, client_id: str | None, secret: str | None, name: str) -> Settings:
    """What goes into .dvc/config.local for a person's own client; asks for a secret that is not known."""
    if not client_id and not known.get("gdrive_client_id"):
        raise UserError(
            "give --client-id of your own OAuth client, or --service-account; the README says how to get one"
        )
    if not client_id:
        secret = secret or known["gdrive_client_secret"]
    kept = Path(repo.dvc_dir, "tmp", f"{name}-credentials.json")
    check_ignored(repo, kept)
    return {
        "gdrive_use_service_account": False,  # said, for an earlier connection may have said otherwise
        "gdrive_client_id": client_id or known["gdrive_client_id"],
        "gdrive_client_secret": secret or click.prompt("Client secret (not shown)", hide_input=True, err=True),
        "gdrive_user_credentials_file": str(kept),
    }


def check_ignored(repo: "Repo", path: Path) -> None:
    """Raise UserError where Git would commit a secret."""
    from dvc.scm import NoSCM

    inside = path.is_relative_to(repo.root_dir)
    if inside and not isinstance(repo.scm, NoSCM) and not repo.scm.is_ignored(str(path)):
        raise UserError(f"{path} holds a secret and Git does not ignore it: move it out of the repository")


@contextmanager
def signing_in(mine: Settings, browser: bool) -> Iterator[tuple[Settings, str]]:
    """Sign in as a person; gives the settings to try it with and a warning, or nothing.

    The credentials take their place when the block ends well; until then an earlier sign-in stays. Raises Failed.
    """
    kept = Path(mine["gdrive_user_credentials_file"])
    fresh = kept.with_name(kept.name + ".part")
    kept.parent.mkdir(parents=True, exist_ok=True)
    fresh.unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    try:
        note = sign_in(mine["gdrive_client_id"], mine["gdrive_client_secret"], fresh, browser)
        yield {"gdrive_user_credentials_file": str(fresh)}, note
        fresh.replace(kept)
    finally:
        fresh.unlink(missing_ok=True)


def sign_in(client_id: str, secret: str, file: Path, browser: bool) -> str:
    """Write a credentials file (mode 0600); returns a warning where the sign-in will not last. Raises Failed."""
    from pydrive2.auth import GoogleAuth
    from pydrive2.fs.spec import COMMON_SETTINGS

    uris = {"auth_uri": "https://accounts.google.com/o/oauth2/auth", "token_uri": "https://oauth2.googleapis.com/token"}
    uris |= {"revoke_uri": "https://oauth2.googleapis.com/revoke", "redirect_uri": ""}
    client = {"client_id": client_id, "client_secret": secret, **uris}
    saved = {"save_credentials": True, "save_credentials_backend": "file", "save_credentials_file": str(file)}
    own = {"client_config_backend": "settings", "client_config": client}
    auth = GoogleAuth(settings={**COMMON_SETTINGS, **saved, **own})
    os.environ.pop("GDRIVE_NON_INTERACTIVE", None)  # this command asks a person by its nature
    try:
        if browser:
            auth.LocalWebserverAuth(port_numbers=PORTS)
        else:
            auth.GetFlow()
            auth.flow.redirect_uri = f"http://localhost:{PORTS[0]}/"
            auth.Auth(ask_code(auth.GetAuthUrl()))
            auth.SaveCredentials()
    except Exception as error:
        if not (trouble := explain(error)):
            raise
        raise Failed(trouble) from None
    return TESTING if "refresh_token_expires_in" in (auth.credentials.token_response or {}) else ""


def ask_code(link: str) -> str:
    """Have a person open a link anywhere, and read the code out of the address that it ends at."""
    click.echo(f"Open this link in a browser on any machine, and sign in:\n\n    {link}\n")
    click.echo("It ends at a page that cannot be shown (http://localhost…); its address holds a code, good for once.")
    answer = click.prompt("Paste that address", err=True).strip()
    query = parse_qs(urlparse(answer).query)
    if "error" in query:
        raise Failed(explain_sign_in(query["error"][0]))
    return query.get("code", [answer])[0]


def check_access(store: "DriveStore") -> str:
    """Who is signed in; raises UserError where they cannot write to the folder."""
    account = store.account()
    if store.is_service and not store.drive:
        raise UserError(SERVICE_ACCOUNT)
    if not store.writable:
        raise UserError(f"{account} may only read the folder: ask its owner to make that account an Editor")
    return account


def write_config(repo: "Repo", name: str, shared: Settings, mine: Settings) -> None:
    """Write both halves of a remote's configuration; the one with secrets is for the user alone to read."""
    if "gdrive_user_credentials_file" in mine:  # DVC keeps it relative to .dvc, so that the repository can be moved
        mine = mine | {"gdrive_user_credentials_file": os.path.relpath(mine["gdrive_user_credentials_file"])}
    with repo.config.edit("repo") as config:
        config["remote"][name] = shared
        config["core"]["remote"] = name
    mask = os.umask(0o077)
    try:
        with repo.config.edit("local") as config:
            config["remote"][name] = mine
    finally:
        os.umask(mask)
    Path(repo.config.files["local"]).chmod(0o600)


def summary(account: str, name: str, shared: Settings, note: str) -> str:
    """What was written where."""
    lines = [
        f"{account} may write to {shared['url']}",
        f".dvc/config        the remote {name}, now the default: to be committed",
        ".dvc/config.local  how you sign in: secret, ignored by Git, for you alone to read",
    ]
    return "\n".join(lines + [note] * bool(note))

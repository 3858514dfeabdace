"""The Hugging Face Hub: what it accepts, and one commit that makes a folder the whole content of a repository."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stages.runtime.errors import UserError, one_line
from stages.runtime.files import files_digest
from tools.publish.card import MARK
from tools.publish.release import Release

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def check_repo_id(repo: str) -> None:
    """Raise UserError where this is not ``user/name``."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--to {repo}: {one_line(error)}") from None
    if "/" not in repo:
        raise UserError(f"--to {repo}: give your user name too, as in anna/{repo}")


def check_token() -> None:
    """Raise UserError where there is no token to write with."""
    from huggingface_hub import constants, get_token

    if not get_token():
        raise UserError(
            f"no token for the Hub: create one with write access at {constants.ENDPOINT}/settings/tokens, then run "
            "`hf auth login` or set HF_TOKEN"
        )


def check_card(folder: Path, kind: str) -> None:
    """Have the Hub itself validate a card, before anything is created there; raises UserError."""
    from huggingface_hub import RepoCard

    with as_user_errors(f"the {kind}'s card"):
        RepoCard.load(folder / "README.md").validate(repo_type=kind)


def push_folder(folder: Path, repo: str, kind: str, release: Release, private: bool) -> str:
    """Make a folder the whole content of a ``model`` or ``space`` repository, in one commit; returns a line about it.

    Raises UserError where the Hub refuses it, or the repository has files of somebody else's that would be deleted.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # the line returned says if nothing changed
    api, files = HfApi(), files_by_name(folder)
    with as_user_errors(repo):
        url = api.create_repo(
            repo,
            repo_type=kind,
            exist_ok=True,
            private=private or None,
            space_sdk="gradio" if kind == "space" else None,
        )
        head, obsolete = head_and_obsolete(api, repo, kind, set(files))
        commit = api.create_commit(
            repo,
            [
                *map(CommitOperationDelete, obsolete),
                *(CommitOperationAdd(name, path) for name, path in sorted(files.items())),
            ],
            commit_message=f"{release.name} at {release.revision[:7]}",
            commit_description=f"Commit {release.revision}, files {files_digest(files)}",
            repo_type=kind,
            parent_commit=head,  # somebody else's commit in the meantime is not overwritten
        )
    if commit.oid == head:
        return f"{url}  unchanged since {commit.oid[:7]}"
    return f"{url}  {release.name}, commit {commit.oid[:7]}"


def files_by_name(folder: Path) -> dict[str, Path]:
    """A folder's files by their names on the Hub."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def head_and_obsolete(api: "HfApi", repo: str, kind: str, names: set[str]) -> tuple[str | None, list[str]]:
    """A repository's newest commit, and its files beside those named, which are to be deleted.

    Raises UserError where there are such files and the repository's card is not ours.
    """
    info = api.space_info(repo) if kind == "space" else api.model_info(repo)
    obsolete = sorted({file.rfilename for file in info.siblings or []} - names - {".gitattributes"})
    tags = info.card_data.tags if info.card_data else None
    if obsolete and MARK not in (tags or []):
        raise UserError(
            f"{repo} has files that this tool did not write, such as {obsolete[0]}: choose another name, or delete them"
        )
    return info.sha, obsolete


@contextmanager
def as_user_errors(subject: str) -> Iterator[None]:
    """Turn what goes wrong with the Hub into UserError; subject: what was sent, for the message."""
    from httpx2 import HTTPError
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause: Exception = error
        while isinstance(cause, RuntimeError) and isinstance(cause.__cause__, Exception):
            cause = cause.__cause__  # an upload's own error
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            raise UserError(refusal(cause.response.status_code, one_line(cause), subject)) from None
        if isinstance(cause, ValueError):  # raised by the client for an answer of the Hub's
            raise UserError(f"the Hub refuses {subject}: {one_line(cause)}") from None
        raise UserError(
            f"the Hub at {constants.ENDPOINT} did not answer ({one_line(cause)}): check the connection and run the "
            "same command again"
        ) from None


def refusal(status: int, reason: str, subject: str) -> str:
    """What to do about an HTTP status of the Hub's."""
    match status:
        case 401:
            return "the Hub does not know this token: create a new one, then run `hf auth login` or set HF_TOKEN"
        case 403:
            return f"this token may not write to {subject}: use one that may, or a name of your own ({reason})"
        case 409 | 412:
            return f"{subject} was changed in the meantime: run the same command again"
    return f"the Hub refuses {subject}: {reason}"

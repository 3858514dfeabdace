"""``python -m tools.publish model|space|both --to user/name``: a pinned model, or its demo, on the Hugging Face Hub.

What is published is made from the pin's revision alone, so that the same version gives the same bytes.
"""

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError, one_line

if TYPE_CHECKING:
    from huggingface_hub import HfApi

    from tools.publish.release import Release

KINDS = {"model": ["model"], "space": ["space"], "both": ["model", "space"]}


@click.command()
@click.argument("what", type=click.Choice(list(KINDS)))
@click.option("--to", "repo", required=True, metavar="USER/NAME", help="Of the model, and of its Space.")
@click.option("--model", "name", metavar="NAME", help="tuned@v1.0.0, or tuned, the workspace's; else the newest pin.")
@click.option("--license", help="The model's, as apache-2.0, where that of its base is not known.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--dry-run", is_flag=True, help="Write the folders and send nothing.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="build/publish", show_default=True, help="Of a dry run."
)
def main(what: str, repo: str, name: str | None, license: str | None, private: bool, dry_run: bool, out: Path) -> None:
    """Publish a version of the tuned model with its card, a Space with its demo, or both."""
    from tools.publish.release import opened

    check_name(repo)
    if not dry_run:
        check_token()
    with opened(Path().resolve(), name) as release, tempfile.TemporaryDirectory() as aside:
        folders = write(release, KINDS[what], repo, license, Path(aside))
        if dry_run:
            for folder in folders.values():
                click.echo(f"{digest(folder)}  {keep(folder, out / folder.name)}")
            return
        for kind, folder in folders.items():
            check_card(folder, kind)
        for kind, folder in folders.items():
            click.echo(push(folder, repo, kind, release, private))


def write(release: "Release", kinds: list[str], repo: str, license: str | None, aside: Path) -> dict[str, Path]:
    """Write the folders of the wanted kinds, their cards checked by the Hub's rules; returns them by kind."""
    from stages.runtime.files import write_text
    from tools.publish.card import model_card, model_license
    from tools.publish.metadata import problems
    from tools.publish.space import copy, write_space

    model = aside / "model"
    for path in sorted(release.model.iterdir()):
        copy(path, model / path.name)
    write_text(model / "README.md", str(model_card(release, repo, model_license(release, license))))
    if "space" in kinds:
        write_space(release, model, repo, aside / "space")
    for kind in kinds:
        if wrong := problems((aside / kind / "README.md").read_text(encoding="utf-8"), kind):
            raise UserError(f"the {kind}'s card is not valid: {'; '.join(wrong)}")
    return {kind: aside / kind for kind in kinds}


def digest(folder: Path) -> str:
    """SHA-256 over a folder's files, by name: 64 hex digits, the same as ``folder_digest`` where it has no folders."""
    total = hashlib.sha256()
    for name, path in sorted(files(folder).items()):
        with path.open("rb") as file:
            total.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def files(folder: Path) -> dict[str, Path]:
    """A folder's files by their names on the Hub."""
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def keep(folder: Path, place: Path) -> Path:
    """Move a folder to its place, where nothing may be but an earlier one; raises UserError."""
    from tools.publish.card import MARK
    from tools.publish.metadata import tags

    if place.exists():
        if MARK not in tags(place / "README.md"):
            raise UserError(f"{place} holds something else: give another folder with --out")
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(folder, place))


# The Hub


def check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"--to {repo}: {one_line(error)}") from None
    if "/" not in repo:
        raise UserError(f"--to {repo}: give your name too, as in anna/{repo}")


def check_token() -> None:
    from huggingface_hub import constants, get_token

    if not get_token():
        raise UserError(
            f"no token for the Hub: make one that may write at {constants.ENDPOINT}/settings/tokens, then run "
            "`hf auth login` or set HF_TOKEN"
        )


def check_card(folder: Path, kind: str) -> None:
    """Have the Hub itself look at a card, before anything is made there; raises UserError."""
    from huggingface_hub import RepoCard

    card = RepoCard.load(folder / "README.md")
    with told("it"):
        try:
            card.validate(repo_type=kind)
        except ValueError as error:
            raise UserError(f"the Hub refuses the {kind}'s card: {one_line(error)}") from None


def push(folder: Path, repo: str, kind: str, release: "Release", private: bool) -> str:
    """Make a folder the whole content of a repository, in one commit; returns what is to be told.

    Raises UserError where the Hub does not let us, or the repository holds files of others' that would be deleted.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # that nothing changed is said below
    api, ours = HfApi(), files(folder)
    with told(repo):
        url = api.create_repo(
            repo,
            repo_type=kind,
            exist_ok=True,
            private=private or None,
            space_sdk="gradio" if kind == "space" else None,
        )
        head, gone = there(api, repo, kind, set(ours))
        done = api.create_commit(
            repo,
            [
                *map(CommitOperationDelete, gone),
                *(CommitOperationAdd(name, path) for name, path in sorted(ours.items())),
            ],
            commit_message=f"{release.name} at {release.revision[:7]}",
            commit_description=f"Commit {release.revision}, files {digest(folder)}",
            repo_type=kind,
            parent_commit=head,  # somebody else's commit meanwhile is not overwritten
        )
    return f"{url}  unchanged since {head[:7]}" if done.oid == head else f"{url}  {release.name}, commit {done.oid[:7]}"


def there(api: "HfApi", repo: str, kind: str, ours: set[str]) -> tuple[str, list[str]]:
    """A repository's newest commit, and its files that are to go."""
    from tools.publish.card import MARK

    info = api.repo_info(repo, repo_type=kind)
    gone = sorted({file.rfilename for file in info.siblings} - ours - {".gitattributes"})
    if gone and MARK not in (info.card_data or {}).get("tags", []):
        raise UserError(
            f"{repo} holds files that this tool did not write, such as {gone[0]}: choose another name, or delete them"
        )
    return info.sha, gone


@contextmanager
def told(repo: str) -> Iterator[None]:
    """What goes wrong with the Hub as a UserError."""
    from httpx2 import HTTPError
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        while isinstance(error, RuntimeError) and error.__cause__:  # around what went wrong in an upload
            error = error.__cause__
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            raise UserError(refusal(error, repo)) from None
        if isinstance(error, ValueError):  # an answer of its own making
            raise UserError(f"the Hub refuses {repo}: {one_line(error)}") from None
        raise UserError(
            f"the Hub at {constants.ENDPOINT} did not answer ({one_line(error)}): see to the connection and run the "
            "same command again"
        ) from None


def refusal(error: Exception, repo: str) -> str:
    """What to do about one of the Hub's answers."""
    match error.response.status_code:
        case 401:
            return "the Hub does not know this token: make a new one, then run `hf auth login` or set HF_TOKEN"
        case 403:
            return f"this token may not write to {repo}: take one that may, or a name of your own ({one_line(error)})"
        case 409 | 412:
            return f"{repo} was changed meanwhile: run the same command again"
    return f"the Hub refuses {repo}: {one_line(error)}"


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

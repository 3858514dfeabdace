"""``python -m tools.publish model|space|both --to user/name``: a pinned model, or its demo, on the Hugging Face Hub.

What is published is made from the pin's revision alone, so that the same version gives the same bytes.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError
from stages.runtime.files import files_digest, write_text
from tools.publish.card import MARK, model_card, model_license
from tools.publish.hub import check_card, check_repo_id, check_token, files_by_name, push_folder
from tools.publish.metadata import metadata_errors, readme_tags
from tools.publish.release import Release, open_release
from tools.publish.space import copy_file, write_space

KINDS = {"model": ["model"], "space": ["space"], "both": ["model", "space"]}


@click.command()
@click.argument("what", type=click.Choice(list(KINDS)))
@click.option("--to", "repo", required=True, metavar="USER/NAME", help="Of the model, and of its Space.")
@click.option("--model", "name", metavar="NAME", help="tuned@v1.0.0, or tuned, the workspace's; else the newest pin.")
@click.option("--license", help="The model's, such as apache-2.0, where that of its base is not known.")
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--dry-run", is_flag=True, help="Write the folders and send nothing.")
@click.option(
    "--out", type=click.Path(path_type=Path), default="build/publish", show_default=True, help="Of a dry run."
)
def main(what: str, repo: str, name: str | None, license: str | None, private: bool, dry_run: bool, out: Path) -> None:
    """Publish a version of the tuned model with its card, a Space with its demo, or both."""
    check_repo_id(repo)
    if not dry_run:
        check_token()
    with open_release(Path().resolve(), name) as release, tempfile.TemporaryDirectory() as aside:
        folders = write_folders(release, KINDS[what], repo, license, Path(aside))
        if dry_run:
            for folder in folders.values():
                click.echo(f"{files_digest(files_by_name(folder))}  {replace_folder(folder, out / folder.name)}")
            return
        for kind, folder in folders.items():
            check_card(folder, kind)
        for kind, folder in folders.items():
            click.echo(push_folder(folder, repo, kind, release, private))


def write_folders(release: Release, kinds: list[str], repo: str, license: str | None, aside: Path) -> dict[str, Path]:
    """Write the folders of the wanted kinds, their cards checked by the Hub's rules; returns them by kind."""
    model = aside / "model"
    for path in sorted(release.model.iterdir()):
        copy_file(path, model / path.name)
    write_text(model / "README.md", str(model_card(release, repo, model_license(release, license))))
    if "space" in kinds:
        write_space(release, model, repo, aside / "space")
    for kind in kinds:
        if errors := metadata_errors((aside / kind / "README.md").read_text(encoding="utf-8"), kind):
            raise UserError(f"the {kind}'s card is not valid: {'; '.join(errors)}")
    return {kind: aside / kind for kind in kinds}


def replace_folder(folder: Path, target: Path) -> Path:
    """Copy a folder to target, in place of an earlier one; raises UserError where something else is there."""
    if target.exists():
        if MARK not in readme_tags(target / "README.md"):
            raise UserError(f"{target} holds something else: give another folder with --out")
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copytree(folder, target))


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

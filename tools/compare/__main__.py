"""``python -m tools.compare A [B …]``: whether B is better than A on the same test clips, by how much, and where."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError
from stages.runtime.files import json_text
from stages.runtime.progress import note
from stages.versioning.revisions import WORKSPACE_NAME

MOST = 10  # revisions side by side in 100 columns


@click.command()
@click.argument("names", metavar="A [B]…", nargs=-1, required=True)
@click.option("--model", type=click.Choice(["tuned", "pretrained"]), default="tuned", show_default=True)
@click.option("--samples", type=click.IntRange(100), default=10_000, show_default=True, help="Of the bootstrap.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Of the bootstrap.")
@click.option("--sentences", type=click.IntRange(0), default=5, show_default=True, help="Better and worse, to show.")
@click.option("--json", "as_json", is_flag=True, help="For programs: every speaker, length and change.")
@click.option(
    "--fail-if-worse",
    "allowed",
    type=click.FloatRange(0),
    metavar="POINTS",
    help="End with 1 where a B's WER is more than POINTS above A's, and p is below 0.05.",
)
@click.option("--root", type=click.Path(path_type=Path), default=".", help="The clone.")
def main(names: tuple[str, ...], model: str, as_json: bool, allowed: float | None, root: Path, **settings: int) -> None:
    """Compare the test transcripts of B with those of A: commits, branches, tags, experiments or "workspace".

    Without B the workspace is compared with A.
    """
    from tools.compare.differences import compare  # seconds to import
    from tools.compare.tables import render_tables
    from tools.compare.transcripts import load_systems

    if len(names) > MOST:
        raise UserError(f"{len(names)} revisions do not fit side by side: give at most {MOST}")
    asked = names if len(names) > 1 else (*names, WORKSPACE_NAME)
    systems, test, notes = load_systems(root, asked, model)
    result = compare(systems, test, **settings)
    if as_json:
        click.echo(json_text({"model": model, **asdict(result), "notes": notes}), nl=False)
    else:
        click.echo(render_tables(result, model))
        for line in notes:
            note(f"note: {line}")
    if allowed is not None and (failures := result.worse_than(allowed)):
        raise UserError(f"{'; '.join(failures)}: --fail-if-worse allows {allowed:g}")


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

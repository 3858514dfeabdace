"""``python -m tools.report``: the test scores before and after as a table, or all there is to see as an HTML page."""

import sys
from pathlib import Path

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError
from stages.versioning.revisions import WORKSPACE_NAME, find_revision
from tools.report.libraries import explain_missing_library
from tools.report.records import read_record
from tools.report.terminal import render_text

SIDE_BY_SIDE = 2


@click.command()
@click.argument("names", metavar="[REV [REV]]", nargs=-1)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write the page there.")
@click.option("--root", type=click.Path(path_type=Path), default=".", help="The clone.")
def main(names: tuple[str, ...], html: Path | None, root: Path) -> None:
    """Show the test scores of the pretrained and the tuned model, what they rest on, and what was left out.

    REV is a commit, branch, tag, experiment or "workspace", which is shown where none is given. With --html all of it
    becomes one HTML file that needs no network: scores, curves, errors, sentences with their audio, parameters, hashes.
    """
    names = names or (WORKSPACE_NAME,)
    if len(names) > SIDE_BY_SIDE:
        raise UserError(
            f"{len(names)} revisions do not fit side by side: give at most {SIDE_BY_SIDE}, "
            f"or see `python -m tools.compare {' '.join(names)}`"
        )
    records = [read_record(root, find_revision(root, name)) for name in names]
    if html is None:
        click.echo(render_text(records))
        return
    with explain_missing_library():
        from tools.report.page import write_page
    click.echo(write_page(root, records, html))


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

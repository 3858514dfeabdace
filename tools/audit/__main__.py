"""``python -m tools.audit``: what is wrong with a corpus, before anything is trained on it."""

import sys
from dataclasses import replace
from pathlib import Path

import click

from stages.runtime.command import run
from stages.runtime.files import json_text
from stages.runtime.progress import note
from tools.audit.kinds import KINDS
from tools.report.libraries import explain_missing_library

DROP = "download.drop"
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--raw", type=click.Path(path_type=Path), default="data/raw", show_default=True, help="The splits.")
@click.option("--model", metavar="FOLDER|PIN", help="Models/tuned, or tuned@v1.0.0: finds wrong transcripts too.")
@click.option("--kind", "kinds", type=click.Choice(list(KINDS)), multiple=True, help="Look for these alone.")
@click.option("--html", type=FILE, default="audit.html", show_default=True, help="The page, with audio.")
@click.option("--json", "as_json", is_flag=True, help="For programs, and no page.")
@click.option("--write", is_flag=True, help="Add what to leave out to download.drop of params.yaml.")
@click.option("--params", type=FILE, default="params.yaml", show_default=True)
def main(
    raw: Path, model: str | None, kinds: tuple[str, ...], html: Path, as_json: bool, write: bool, params: Path
) -> None:
    """Say how much speech there is, and which clips are likely faulty: by sound, by text, and by the two together.

    All splits are read as `download` left them, and nothing is changed. The page has the clips to listen to. What is
    found is likely, not sure: listen before you leave it out.
    """
    from tools.audit.corpus import audit_corpus  # seconds to import
    from tools.audit.overview import as_table, as_values, drop_yaml, write_page

    audit = audit_corpus(raw, params, model)
    if kinds:
        audit = replace(audit, findings=[one for one in audit.findings if one.kind in kinds])
    if as_json:
        click.echo(json_text(as_values(audit)), nl=False)
    else:
        click.echo(as_table(audit))
        with explain_missing_library():
            click.echo(write_page(audit, html))
        if text := drop_yaml(audit) if not write else "":
            click.echo(f"To leave these out, paste into {params}, or run this again with --write:\n{text}", nl=False)
    if write:
        note(write_drop(params, audit.drop()))


def write_drop(path: Path, reasons: dict[str, list[str]]) -> str:
    """Add clips to download.drop of params.yaml; returns a line that says so."""
    from stages.params_file import ParamsFile

    file = ParamsFile(path)
    known = file.validate().download.drop
    for reason, names in reasons.items():
        file.set(f"{DROP}.{reason}", sorted({*known.get(reason, []), *names}))
    file.save()
    return f"{path}: {sum(map(len, reasons.values())):,} clips added to {DROP}; run `make repro`"


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

"""``python -m tools.sweep default``: search for better values of params.yaml, each trial an experiment of DVC's."""

import difflib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stages.runtime.command import run
from stages.runtime.errors import UserError

if TYPE_CHECKING:
    from stages.training.run import Run
    from tools.sweep.plan import Plan
    from tools.sweep.study import Sweep

PATH = click.Path(path_type=Path)
FOLDER = ".dvc/tmp/sweeps"


@click.command()
@click.argument("name", metavar="SWEEP")
@click.option("--study", metavar="NAME", help="Another name than the file's, for a sweep of its own.")
@click.option("--storage", metavar="URL", help="A database that other machines reach too, as Optuna writes it.")
@click.option("--confirm", "seeds", type=click.IntRange(1), metavar="K", help="Rerun the best two with K other seeds.")
@click.option("--apply", "write", is_flag=True, help="Write the best values into params.yaml.")
@click.option("--charts", type=PATH, help=f"Where to draw the study; else {FOLDER}/NAME.html.")
@click.option("--root", type=PATH, default=".", help="The clone.")
def main(  # its options
    name: str, study: str | None, storage: str | None, seeds: int | None, write: bool, charts: Path | None, root: Path
) -> None:
    """Search for better values of params.yaml, chosen on validation; the same command goes on with what it began.

    SWEEP is a .yaml with space, sampler, trials and hours, or the name of a shipped one: default, swedish-small. Each
    trial is an experiment, in `dvc exp show`. Several processes may work on one sweep.
    """
    sweep = open_sweep(root, name, study, storage)
    from tools.sweep.charts import write_charts
    from tools.sweep.trials import ranking, run_trials, summary
    from tools.sweep.winner import certainty, confirm

    run_trials(root, sweep)
    click.echo(summary(sweep))
    page = charts or root / FOLDER / f"{sweep.name}.html"
    write_charts(page, sweep.name, sweep.study)
    click.echo(f"Charts: {page}")
    ranked = ranking(sweep)
    if not ranked:
        raise UserError("no trial ran to its end: see the logs in " + str(sweep.folder))
    click.echo(certainty(root, sweep))
    if seeds:
        click.echo(confirm(root, sweep, seeds))
    click.echo(propose(sweep, write))


def open_sweep(root: Path, name: str, study: str | None, storage: str | None) -> "Sweep":
    """The sweep of a file, checked, as it was left; raises UserError where it cannot be run."""
    try:
        import optuna  # noqa: F401
        import plotly  # noqa: F401
    except ImportError as error:
        raise UserError(f"{error.name} is missing: pip install -c constraints.txt -e '.[experiments]'") from None
    from tools.sweep.experiments import check_ready
    from tools.sweep.plan import find_plan, load_plan
    from tools.sweep.study import Sweep

    path, params = find_plan(name), root / "params.yaml"
    plan = load_plan(path, params)
    check_ready(root)
    title = study or path.stem
    folder = (root / FOLDER / title).resolve()
    return Sweep(storage or f"{folder}.log", title, folder, plan, origin(root, plan, params), params)


def origin(root: Path, plan: "Plan", params: Path) -> "Run":
    """What all trials of a sweep have in common: where that differs, they do not compare."""
    from stages.params_file import flatten
    from stages.runtime.files import file_digest
    from stages.runtime.imports import reached_modules
    from stages.training.run import BY_VALUE, Run
    from stages.versioning.pins import read_if_present
    from stages.versioning.revisions import LOCK, lock_stages
    from tools.sweep.experiments import STAGE
    from tools.sweep.plan import apply

    sections = {"whisper", "download", "featurize", "features", "train"}
    values = apply(params, {}).model_dump(mode="json", include=sections)
    turned = plan.space.keys() | plan.overrides.keys()
    stages = lock_stages(read_if_present(root, LOCK)).values()
    items = [item for kind in ("deps", "outs") for entry in stages for item in entry.get(kind, [])]
    hashes = {item["path"]: item.get("md5") for item in items}
    modules = reached_modules(f"stages.{STAGE}", BY_VALUE, root)
    return Run(
        {
            "space": plan.model_dump(mode="json")["space"],
            "overrides": dict(plan.overrides),
            "params": {key: value for key, value in flatten(values) if key not in turned},
            "data": {path: hashes[path] for path in values["features"].values() if path in hashes},
            "code": {key: file_digest(path) for key, path in modules.items()},
        }
    )


def propose(sweep: "Sweep", write: bool) -> str:
    """The best values as a diff of params.yaml; written where that was asked for."""
    from stages.params_file import ParamsFile, yaml_text
    from tools.sweep.study import NAME
    from tools.sweep.trials import ranking

    file, best = ParamsFile(sweep.params), ranking(sweep)[0]
    before = yaml_text(file.document)
    for key, value in best.params.items():
        file.set(key, value)
    old, new, path = before.splitlines(), yaml_text(file.document).splitlines(), sweep.params.name
    diff = "\n".join(difflib.unified_diff(old, new, path, path, lineterm="", n=0))
    if not diff:
        return "params.yaml has the best values already."
    if write:
        file.save()
    how = "written" if write else "--apply writes them"
    name = best.user_attrs[NAME]
    return f"{diff}\nThe best values, of {name}; {how}. `dvc repro` then trains at full length."


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

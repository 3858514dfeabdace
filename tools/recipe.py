"""``python -m tools.recipe list|show|set|check``: overlays from recipes/, written into params.yaml, comments kept.

``recipes/default.yaml`` holds the shipped values of every section that shapes a result; each recipe is laid over
those, whatever stands in params.yaml, so that the same command always gives the same values. Sections that no recipe
has (``compute`` and the like) belong to the machine and stay as they are.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
from ruamel.yaml.error import YAMLError

from stages.corpora import folder
from stages.corpora.local import locate
from stages.params_file import (
    Changes,
    ParamsFile,
    flatten,
    read_document,
    recordings_read,
    round_trip_yaml,
    yaml_text,
)
from stages.runtime.command import run
from stages.runtime.errors import UserError, one_line
from stages.runtime.progress import note

DEFAULT = "default"
FILE = click.Path(path_type=Path)

ASK_SECONDS = 10  # that the Hub may take to answer

Values = dict[str, object]  # by dotted key; mappings are never among the values


class Repository(NamedTuple):
    """One of the Hub's that params.yaml names. key: of its revision; kind: model or dataset."""

    key: str
    kind: str
    name: str


@click.group()
@click.option("--recipes", type=FILE, default="recipes", help="Folder of the overlays.")
@click.pass_context
def main(context: click.Context, recipes: Path) -> None:
    """Recipes: named values for params.yaml."""
    context.obj = recipes


@main.command("list")
@click.pass_obj
def list_recipes(recipes: Path) -> None:
    """List the recipes, each with its purpose."""
    for name in recipe_names(recipes):
        click.echo(f"{name:<15} {recipe_purpose(find_recipe(recipes, name))}")


@main.command()
@click.argument("name")
@click.pass_obj
def show(recipes: Path, name: str) -> None:
    """Print a recipe, with the sources of its values."""
    click.echo(find_recipe(recipes, name).read_text(encoding="utf-8"), nl=False)


@main.command("set")
@click.argument("name", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A further value: train.max_steps=500.")
@click.option("--pin", is_flag=True, help="Take today's commits of base model and data set, as the Hub tells them.")
@click.option("--params", type=FILE, default="params.yaml")
@click.pass_obj
def set_recipe(recipes: Path, name: str | None, settings: tuple[str, ...], pin: bool, params: Path) -> None:
    """Write a recipe, laid over the default, into params.yaml; without NAME write only the values of --set.

    The digest of a folder of recordings is computed and written too. Commits that the Hub does not know are refused,
    where it can be asked.
    """
    changes = apply_values(params, recipe_values(recipes, name) | flatten_settings(settings), "pin" if pin else "check")
    for key, (before, after) in changes.items():
        click.echo(f"{key}: {inline_yaml(before)} → {inline_yaml(after)}")
    click.echo(f"{params}: {len(changes)} changed")


@main.command()
@click.argument("name")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A further value: train.batch_size=8.")
@click.option("--params", type=FILE, default="params.yaml", help="Of the sections that no recipe has.")
@click.pass_obj
def check(recipes: Path, name: str, settings: tuple[str, ...], params: Path) -> None:
    """Say what a recipe needs, before anything starts: data, download, disk, memory and hours.

    Measures a few training steps here, with fresh weights and made-up clips. Ends with 1 where something is lacking.
    """
    import stages.training  # noqa: F401  # first: it silences what transformers imports
    from tools.estimate import find_needs  # torch, seconds to import

    file = ParamsFile(params)
    for key, value in (recipe_values(recipes, name) | flatten_settings(settings)).items():
        file.set(key, value)
    values = file.validate()
    lacks = []
    for finding in find_needs(values):
        click.echo(f"{finding.topic:<10} {finding.text}")
        lacks += [finding.lack] if finding.lack else []
    if lacks:
        raise UserError(f"{name} does not run here yet; lacking: {', '.join(lacks)}")


def apply_values(path: Path, values: Values, revisions: str = "keep") -> Changes:
    """Write values into params.yaml, whole or not at all; returns what changed.

    revisions: ``keep`` those of the Hub, ``check`` that it knows them, or ``pin`` them to its newest commits.
    Raises UserError where the result would not be valid, a folder's recordings are missing and have no digest, or the
    Hub does not know what is named.
    """
    params = ParamsFile(path)
    for key, value in values.items():
        params.set(key, value)
    if revisions == "pin":
        pin_revisions(params)
    download = params.validate().download
    if revisions == "check":
        check_revisions(params)
    for key, named in recordings_read(download).items():
        if values.get(key) is None:
            recordings = locate(named, "Put the folder of your recordings there")
            params.set(key, folder.recordings_digest(recordings))
    return params.save()


def named_repositories(params: ParamsFile) -> Iterator[Repository]:
    """What params.yaml takes from the Hub: the base model, and the data sets that are a corpus or a probe."""
    base, dataset = params.get("whisper.base"), params.get("download.hub.id")
    if isinstance(base, str) and base != "scratch" and base[:1] not in "./~":
        yield Repository("whisper.revision", "model", base)
    if isinstance(dataset, str) and params.get("download.corpus") == "hub" and not params.get("download.corpora"):
        yield Repository("download.hub.revision", "dataset", dataset)
    for kind in ("download.corpora", "download.probes"):
        for name in params.names(kind):
            if params.get(f"{kind}.{name}.corpus") == "hub":
                own = params.get(f"{kind}.{name}.set.id") or dataset
                yield Repository(f"{kind}.{name}.set.revision", "dataset", str(own))


def pin_revisions(params: ParamsFile) -> None:
    """Set each revision to the repository's newest commit, with its date; raises UserError where it cannot be had."""
    for repository in named_repositories(params):
        commit, date = ask_commit(repository, None)
        params.set(repository.key, commit, dated=date)
        click.echo(f"{repository.name}: the newest commit is {commit}, of {date}")


def check_revisions(params: ParamsFile) -> None:
    """Raise UserError where the Hub does not know a revision; where it cannot be asked, say so and go on."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    for repository in named_repositories(params):
        if HF_HUB_OFFLINE:
            return
        try:
            ask_commit(repository, str(params.get(repository.key) or params.get("download.hub.revision")))
        except NoAnswerError as error:
            return note(f"{error}: whether it knows the revisions was not checked")


class NoAnswerError(UserError):
    """The Hub cannot be asked."""


def ask_commit(repository: Repository, revision: str | None) -> tuple[str, str]:
    """A commit as the Hub knows it, by default the newest, and its date; raises UserError where it does not."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    key, kind, name = repository
    try:
        found = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=ASK_SECONDS)
    except RevisionNotFoundError:
        raise UserError(
            f"{key}: the Hub does not know the commit {revision} of {name}: take another, or today's with --pin"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{key}: the Hub shows no {kind} {name}: check the name, or sign in (HF_TOKEN) to one that you may see"
        ) from None
    except Exception as error:  # each version of huggingface_hub has another HTTP library, with errors of its own
        raise NoAnswerError(f"the Hub cannot be asked for {name} ({one_line(error)[:200]})") from None
    if not found.sha or not found.last_modified:
        raise NoAnswerError(f"the Hub tells no commit of {name}")
    return found.sha, f"{found.last_modified:%Y-%m-%d}"


def recipe_names(recipes: Path) -> list[str]:
    """The names of all recipes, the default first."""
    found = sorted(path.stem for path in recipes.glob("*.yaml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def find_recipe(recipes: Path, name: str) -> Path:
    """A recipe's file; raises UserError with the names of all where it has none of that name."""
    known = recipe_names(recipes)
    if name not in known:
        raise UserError(f"{recipes} has no recipe {name}; choose one of {', '.join(known) or 'none'}")
    return recipes / f"{name}.yaml"


def recipe_purpose(path: Path) -> str:
    """The first line of a recipe's leading comment."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def recipe_values(recipes: Path, name: str | None) -> Values:
    """A recipe's values laid over the default's; none without a name."""
    if name is None:
        return {}
    return {key: value for part in (DEFAULT, name) for key, value in flatten(read_document(find_recipe(recipes, part)))}


def flatten_settings(settings: tuple[str, ...]) -> Values:
    """The values of --set's KEY=VALUE, VALUE in YAML, by dotted key; a mapping gives one for each of its keys."""
    values: Values = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not all(key.split(".")):
            raise UserError(f"--set {setting}: expected KEY=VALUE, such as train.max_steps=500")
        try:
            value = round_trip_yaml().load(text)
        except YAMLError as error:
            raise UserError(f"--set {setting}: {text!r} is not valid YAML: {error}") from None
        values |= dict(flatten(value, key)) if isinstance(value, dict) and value else {key: value}
    return values


def inline_yaml(value: object) -> str:
    """A value as YAML on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(inline_yaml, value))}]"
    return yaml_text(value).removesuffix("...\n").strip()


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

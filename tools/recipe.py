"""``python -m tools.recipe list|show|set``: overlays from recipes/, put into params.yaml with its comments kept.

``recipes/default.yaml`` holds the shipped values of every section that shapes a result; each recipe is put on top of
those, whatever stands in params.yaml, so that the same command always gives the same values. Sections that no recipe
has (``compute`` and the like) belong to the machine and stay as they are.
"""

import io
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.representer import RoundTripRepresenter

from stages.corpora import folder
from stages.corpora.local import locate
from stages.params import Params, explain
from stages.runtime.command import run
from stages.runtime.errors import UserError
from stages.runtime.files import write_text

DEFAULT = "default"
DIGEST = "download.folder.digest"
FILE = click.Path(path_type=Path)

Values = dict[str, object]  # by dotted key; mappings are never among the values


@click.group()
@click.option("--recipes", type=FILE, default="recipes", help="Folder of the overlays.")
@click.pass_context
def main(context: click.Context, recipes: Path) -> None:
    """Recipes: named values for params.yaml."""
    context.obj = recipes


@main.command("list")
@click.pass_obj
def list_recipes(recipes: Path) -> None:
    """Name the recipes, each with what it is for."""
    for name in names(recipes):
        click.echo(f"{name:<15} {description(find(recipes, name))}")


@main.command()
@click.argument("name")
@click.pass_obj
def show(recipes: Path, name: str) -> None:
    """Print a recipe, with where its values come from."""
    click.echo(find(recipes, name).read_text(encoding="utf-8"), nl=False)


@main.command("set")
@click.argument("name", required=False)
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A value besides, as train.max_steps=500.")
@click.option("--params", type=FILE, default="params.yaml")
@click.pass_obj
def set_recipe(recipes: Path, name: str | None, settings: tuple[str, ...], params: Path) -> None:
    """Put a recipe, on top of the default, into params.yaml; without NAME put only what --set says.

    The digest of a folder of recordings is computed and written too.
    """
    changes = apply(params, recipe_values(recipes, name) | flatten_settings(settings))
    for key, (before, after) in changes.items():
        click.echo(f"{key}: {shown(before)} → {shown(after)}")
    click.echo(f"{params}: {len(changes)} changed")


def apply(path: Path, values: Values) -> dict[str, tuple[object, object]]:
    """Put values into params.yaml, whole or not at all; returns what changed, before and after by dotted key.

    Raises UserError where the result would not be valid, or the recordings of a folder are not there to be pinned.
    """
    document, before = read(path), dict(flatten(read(path)))
    for key, value in values.items():
        put(document, key.split("."), value)
    corpus = check(document, path).download
    if corpus.corpus == "folder" and values.get(DIGEST) is None:
        recordings = locate(corpus.folder.path, "Put the folder of your recordings there")
        put(document, DIGEST.split("."), folder.recordings_digest(recordings))
        check(document, path)
    after = dict(flatten(document))
    changes = {key: (before.get(key), value) for key, value in after.items() if before.get(key, ...) != value}
    if changes:
        align(document, changes)
        write_text(path, text_of(document))
    return changes


def names(recipes: Path) -> list[str]:
    """The recipes there are, the default first."""
    found = sorted(path.stem for path in recipes.glob("*.yaml"))
    return sorted(found, key=lambda name: name != DEFAULT)


def find(recipes: Path, name: str) -> Path:
    """A recipe's file; raises UserError with the names there are."""
    known = names(recipes)
    if name not in known:
        raise UserError(f"{recipes} has no recipe {name}; there are {', '.join(known) or 'none'}")
    return recipes / f"{name}.yaml"


def description(path: Path) -> str:
    """The first line of a recipe's leading comment."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("#").strip()


def recipe_values(recipes: Path, name: str | None) -> Values:
    """A recipe's values on top of the default's; none without a name."""
    if name is None:
        return {}
    return {key: value for part in (DEFAULT, name) for key, value in flatten(read(find(recipes, part)))}


def flatten_settings(settings: tuple[str, ...]) -> Values:
    """KEY=VALUE as typed, with values in YAML; mappings are taken apart."""
    values: Values = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not all(key.split(".")):
            raise UserError(f"--set {setting}: expected KEY=VALUE, such as train.max_steps=500")
        try:
            value = yaml().load(text)
        except YAMLError as error:
            raise UserError(f"--set {setting}: {text!r} is no YAML: {error}") from None
        values |= dict(flatten(value, key)) if isinstance(value, dict) and value else {key: value}
    return values


def flatten(values: dict, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, value) of every value that is no mapping."""
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict) and value:
            yield from flatten(value, key)
        else:
            yield key, value


def put(document: CommentedMap, keys: list[str], value: object) -> None:
    """Set one value, its comment kept; where a section is missing or none, the check that follows says so."""
    *parents, last = keys
    section = document
    for parent in parents:
        if not isinstance(section.get(parent), dict):
            section[parent] = CommentedMap()
        section = section[parent]
    if section.get(last, ...) == value:
        return  # as it was written: 1.5e-3, not 0.0015
    if isinstance(section.get(last), CommentedSeq) and isinstance(value, list):
        section[last][:] = value  # in place: the comment hangs on the list
        section[last].fa.set_flow_style()  # which one that was empty has lost
    else:
        section[last] = value


def check(document: CommentedMap, path: Path) -> Params:
    """The values as params; raises UserError as ``load_params`` does."""
    try:
        return Params.model_validate(YAML(typ="safe", pure=True).load(text_of(document)))
    except ValidationError as error:
        raise UserError("\n".join([f"{path}:", *(explain(problem) for problem in error.errors())])) from None


def align(document: CommentedMap, keys: Iterable[str]) -> None:
    """Put comments behind changed values into the column where most stand; the writer moves those that do not fit."""
    columns = Counter(len(match[0]) for match in re.finditer(r"(?m)^ *[^\s#].*? +(?=# )", text_of(document)))
    for key in keys:
        *parents, last = key.split(".")
        section = document
        for parent in parents:
            section = section[parent]
        if comment := section.ca.items.get(last, [None] * 3)[2]:
            comment.column = columns.most_common(1)[0][0]


class Writer(RoundTripRepresenter):
    """Writes null where ruamel writes nothing."""

    def represent_null(self, _: None) -> ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:null", "null")


Writer.add_representer(type(None), Writer.represent_null)


def yaml() -> YAML:
    """A reader and writer that keeps comments, quotes and line lengths."""
    result = YAML()
    result.preserve_quotes, result.width, result.Representer = True, 10_000, Writer
    return result


def read(path: Path) -> CommentedMap:
    """A YAML file with its comments; raises UserError where it is none."""
    try:
        document = yaml().load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run from the project's root") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML: {error}") from None
    if not isinstance(document, CommentedMap):
        raise UserError(f"{path} holds no sections")
    return document


def text_of(document: CommentedMap) -> str:
    buffer = io.StringIO()
    yaml().dump(document, buffer)
    return buffer.getvalue()


def shown(value: object) -> str:
    """A value as YAML has it, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    buffer = io.StringIO()
    yaml().dump(value, buffer)
    return buffer.getvalue().removesuffix("...\n").strip()


if __name__ == "__main__":
    run(lambda: main, sys.argv[1:])

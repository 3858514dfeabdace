"""What the manuals, the workflows and the project's own data say, against what there is."""

import importlib.util
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from itertools import chain, dropwhile, groupby
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from tests.support.material import ROOT
from tools.publish.space import read_constraints

ROOMS = ("app", "bench", "stages", "tools")
MANUALS = sorted([*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("README.md"))])
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
NO_KEYS = {"cpp", "json", "md", "py", "tsv", "yaml"}  # endings of files that are named like a section


def load(path: Path) -> dict:
    return YAML(typ="safe").load(path)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def each(paths: list[Path]):
    return pytest.mark.parametrize("path", paths, ids=name_of)


# Commands


def lines(text: str) -> Iterator[str]:
    """The command lines of a manual: of sh blocks, of notebook cells, and between backticks."""
    for language, code in FENCE.findall(text):
        if language == "sh":
            yield from code.replace("\\\n", " ").splitlines()
        yield from (line[1:] for line in code.splitlines() if line.startswith("!"))
    yield from re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(text: str) -> list[list[str]]:
    """The commands of a manual as words, from the program on; without variables set before it."""
    found = []
    for line in lines(text):
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        for ends, group in groupby(words, lambda word: word[0] in "&|;"):
            command = list(dropwhile(lambda word: re.match(r"\w+=|(/usr/bin/)?time$|-v$", word), group))
            if command and not ends and "…" not in command:
                found.append(command)
    return found


@each(MANUALS)
def test_every_module_and_its_options_are_there(path):
    for words in commands(path.read_text(encoding="utf-8")):
        if words[:2] != ["python", "-m"]:
            continue
        module, *arguments = words[2:]
        spec = importlib.util.find_spec(module)
        assert spec, words
        if not (ROOT / module.partition(".")[0]).is_dir():
            continue  # another's, as pytest
        name = f"{module}.__main__" if spec.submodule_search_locations else module
        if isinstance(command := getattr(importlib.import_module(name), "main", None), click.Command):
            check_options(command, arguments)


def check_options(command: click.Command, arguments: list[str]) -> None:
    """Every option is one of the command's, and every subcommand is there."""
    for word in arguments:
        if word.startswith("-"):
            assert word.partition("=")[0] in {"--help", *(o for p in command.params for o in p.opts)}, (command, word)
        elif isinstance(command, click.Group):
            for name in word.split("|"):
                assert name in command.commands, (command, name)
            command = command.commands[word.split("|")[0]]


@each(MANUALS)
def test_every_dvc_command_is_one_that_dvc_takes(path):
    from dvc.cli.parser import get_main_parser

    parser = get_main_parser()
    for words in commands(path.read_text(encoding="utf-8")):
        if words[0] == "dvc" and len(words) > 1:
            parser.parse_args([word for word in words[1:] if word != "…"])  # raises where it does not


@each(MANUALS)
def test_every_target_of_make_is_there(path):
    named = [words for words in commands(path.read_text(encoding="utf-8")) if words[0] == "make"]
    for words in named:
        assert {word for word in words[1:] if "=" not in word} <= targets() | {".venv/ready"}, words


def test_no_target_is_taken_for_a_file():
    (phony,) = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(phony.split()) == targets()


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return {name for line in re.findall(r"^([a-z][a-z ]*):(?!=)", makefile, re.M) for name in line.split()}


# Names


@each(MANUALS)
def test_every_parameter_is_one_of_params_yaml(path):
    params = load(ROOT / "params.yaml")
    text = path.read_text(encoding="utf-8")
    for key in re.findall(rf"(?<![\w./@-])((?:{'|'.join(params)})(?:\.\w+)+)\b(?!\(|/)", text):
        if key.rpartition(".")[2] in NO_KEYS or (ROOT / key.replace(".", "/")).with_suffix(".py").exists():
            continue
        value = params
        for part in key.split("."):
            assert isinstance(value, dict) and part in value, key
            value = value[part]


@each(MANUALS)
def test_every_link_and_picture_is_there(path):
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, heading = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        if heading:
            assert heading in slugs(there.read_text(encoding="utf-8")), target


def slugs(text: str) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short_and_its_tree_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 140
    tree = next(code for _, code in FENCE.findall(text) if code.startswith("params.yaml"))
    parent = ROOT
    for line in tree.splitlines():
        paths = re.findall(r"^ *(\S+/?(?: \S+/)*)(?= {2})", line)[0].split()
        parent = ROOT if line[0] != " " else parent
        made = {"data/", "models/"}  # by the stages
        assert all(path in made or (parent / path).exists() for path in paths), line
        parent = ROOT / paths[0] if line[0] != " " else parent


# What machines read


@each(WORKFLOWS)
def test_a_workflow_calls_what_is_there(path):
    workflow = load(path)
    assert workflow["permissions"]["contents"] == "read"
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    called = [word for step in steps for word in shlex.split(step.get("run", "")) if word.startswith(".")]
    assert called
    for word in called:
        assert (ROOT / word).stat().st_mode & 0o111, word


def test_versions_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = load(ROOT / "CITATION.cff")
    changes = re.findall(r"^## \[(\d\S*)\] - (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert changes[0] == (project["version"], str(citation["date-released"]))
    assert citation["version"] == project["version"]
    assert citation["repository-code"] == project["urls"]["Repository"]


def test_pins_are_within_the_bounds_and_the_hook_has_the_pinned_ruff():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line[0] != "#"]
    pins = {simple(pin.name): next(iter(pin.specifier)).version for pin in pinned}
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[simple(wanted.name)]), line
    (hook,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert hook["rev"] == f"v{pins['ruff']}"


def test_what_make_installs_has_hashes_and_the_pinned_version():
    """Of every package but torch, whose build is chosen elsewhere; those of other platforms have no pin."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [project["optional-dependencies"][extra] for extra in ("app", "experiments", "test")]
    asked = {simple(Requirement(line).name) for line in [*project["dependencies"], *chain(*extras)]}
    text = (ROOT / ".ci/hashes.txt").read_text()
    blocks = re.findall(r"(?m)^([\w.-]+)==([^ ;]+)[^\n]*(?:\n +--hash=sha256:[0-9a-f]{64}(?: \\)?)+$", text)
    assert len(blocks) == len(re.findall(r"(?m)^\S", text))
    hashed = {simple(name): version for name, version in blocks}
    assert asked - hashed.keys() == {"torch"}
    pins = read_constraints(ROOT)
    assert {name: version for name, version in hashed.items() if pins.get(name, version) != version} == {}


def simple(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_container_installs_what_make_installs():
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text(encoding="utf-8"))
    assert container["postCreateCommand"] == "make .venv/ready"

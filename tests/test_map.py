"""The house: dvc.yaml against the code, and on which floor a module may look for another."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.runtime.imports import ROOT, imported_names, modules_of, reached_modules
from stages.training.run import BY_VALUE

STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
UNTRACKED = {"compute", "checkpoints", "app"}  # what shapes no result
FLOORS = {  # of the house, from the ground up: a room imports from lower floors, and from itself
    "runtime": 0,
    "asr": 1,
    "params": 1,
    "corpora": 2,
    "versioning": 2,
    "training": 3,
    "stages": 4,
    "app": 5,
    "tools": 5,
}


def entry(name: str) -> dict:
    return STAGES[name].get("do", STAGES[name])


def room(module: str) -> str:
    """The part of the house that a module is in."""
    package, *rest = module.split(".")
    if package != "stages":
        return package
    return rest[0] if len(rest) > 1 or rest[0] == "params" else "stages"


def project_imports(module: str) -> set[str]:
    """The project's own modules that a module's source names."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    return imported_names(source) & MODULES.keys() - {module}


MODULES = {name: room(name) for folder in ("stages", "tools", "app") for name in modules_of(folder)}


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_modules_that_a_stage_reaches(name):
    listed = {Path(dep) for dep in entry(name)["deps"] if dep.endswith(".py")}
    reached = reached_modules(f"stages.{name}", BY_VALUE).values()
    assert listed == {path.relative_to(ROOT) for path in reached}


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_that_a_stage_takes(name):
    """A stage's command calls load_params once, and takes sections of what it gives."""
    tree = ast.parse((ROOT / "stages" / f"{name}.py").read_text())
    (given,) = (
        node.targets[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("load_params(")
    )
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    taken = {node.attr for node in attributes if ast.unparse(node.value) == given}
    assert taken - UNTRACKED == set(entry(name)["params"])


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_downwards(module):
    here = FLOORS[MODULES[module]]
    upwards = {other for other in project_imports(module) if MODULES[other] != MODULES[module]}
    assert not {other for other in upwards if FLOORS[MODULES[other]] >= here}


def test_no_imports_run_in_a_circle():
    left = {module: project_imports(module) for module in MODULES}
    while free := [module for module, others in left.items() if not others & left.keys()]:
        for module in free:
            del left[module]
    assert not left


def test_no_stage_imports_a_stage():
    stages = {f"stages.{name}" for name in STAGES}
    assert not {(stage, other) for stage in stages for other in project_imports(stage) & stages}


def test_speech_knows_neither_a_command_line_nor_parameters():
    for module in (name for name, room in MODULES.items() if room == "asr"):
        source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        assert not {"click", "stages.params", "stages.params_file"} & imported_names(source), module


@pytest.mark.parametrize("name", STAGES)
def test_every_path_in_a_command_is_a_dep_or_an_out(name):
    stage = entry(name)
    known = {"params.yaml", "data/kept", "models/checkpoints"} | set(stage["deps"])
    for item in [*stage.get("outs", []), *stage.get("metrics", [])]:
        known |= {item} if isinstance(item, str) else set(item)
    paths = {word for word in stage["cmd"].split() if "/" in word or word.endswith(".yaml") or word[0] == "$"}
    assert all(any(Path(path) in (Path(k), *Path(k).parents) for k in known) for path in paths), paths - known


def test_train_does_not_depend_on_test_nor_on_long_audio():
    deps = entry("train")["deps"]
    assert not [dep for dep in deps if "test" in dep or "transcription" in dep]

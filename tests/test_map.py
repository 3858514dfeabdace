"""dvc.yaml against the code: deps are what a stage reaches, params what it receives."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parent.parent
STAGES = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
UNTRACKED = {"compute", "checkpoints", "app"}  # what shapes no result
BY_VALUE = Path("stages/params.py")  # DVC tracks the values, not the code that reads them


def reached(module: str, seen: set[Path]) -> set[Path]:
    """The project's modules that importing a module imports, itself included."""
    path = Path(module.replace(".", "/") + ".py")
    if not (ROOT / path).is_file() or path in seen:
        return seen
    seen.add(path)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f"{node.module}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            reached(name, seen)
    return seen


def entry(name: str) -> dict:
    return STAGES[name].get("do", STAGES[name])


@pytest.mark.parametrize("name", STAGES)
def test_deps_are_the_modules_that_a_stage_reaches(name):
    listed = {Path(dep) for dep in entry(name)["deps"] if dep.endswith(".py")}
    assert listed == reached(f"stages.{name}", set()) - {BY_VALUE}


@pytest.mark.parametrize("name", STAGES)
def test_params_are_the_sections_that_a_stage_loads(name):
    tree = ast.parse((ROOT / "stages" / f"{name}.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "load_params"]
    (call,) = calls
    assert {arg.value for arg in call.args[1:]} - UNTRACKED == set(entry(name)["params"])


@pytest.mark.parametrize("name", STAGES)
def test_every_path_in_a_command_is_a_dep_or_an_out(name):
    stage = entry(name)
    known = {"params.yaml", "models/checkpoints"} | set(stage["deps"])
    for item in [*stage.get("outs", []), *stage.get("metrics", [])]:
        known |= {item} if isinstance(item, str) else set(item)
    paths = {word for word in stage["cmd"].split() if "/" in word or word.endswith(".yaml")}
    assert all(any(Path(path) in (Path(k), *Path(k).parents) for k in known) for path in paths), paths - known


def test_train_does_not_depend_on_test_nor_on_long_audio():
    deps = entry("train")["deps"]
    assert not [dep for dep in deps if "test" in dep or "transcription" in dep]

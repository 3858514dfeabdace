"""The folder of a Space: the demo's own modules, what they need, and the model with its card."""

import ast
import re
import shutil
import sys
from copy import deepcopy
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from stages.runtime.errors import UserError
from stages.runtime.files import write_text
from tools.publish.card import space_card
from tools.publish.release import Release
from tools.recipe import put, text_of

ENTRY = "app.main"
PAGE = "space.py"  # app.py would share its name with the package
PAGE_TEXT = '''"""The demo as a Space: the page of app.main with the model beside this file."""

import os
import sys
from pathlib import Path

from app.main import main
from stages.runtime.command import run

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)  # where params.yaml is
    run(lambda: main, ["--models", "{model}", "--host", "0.0.0.0", *sys.argv[1:]])
'''
REGISTRY = {"dvc", "dvc_data", "dvc_objects", "gto"}  # reads a clone's pins; a Space has its one model beside it
CPU_INDEX = "https://download.pytorch.org/whl/{}"


def write_space(release: Release, model: Path, repo: str, folder: Path) -> None:
    """Write a Space for a release: the code of its revision, and the folder with its model and card."""
    modules, names = reached(release.files, ENTRY)
    for path in sorted(modules | data_files(release.files) | {Path("LICENSE")}):
        copy(release.files / path, folder / path)
    place = release.name.replace("@", "-")
    for path in sorted(model.iterdir()):
        copy(path, folder / place / path.name)
    pins = constraints(release.files)
    params = deepcopy(release.params)
    put(params, ["app", "recordings"], None)
    write_text(folder / "params.yaml", text_of(params))
    write_text(folder / "requirements.txt", requirements(names, pins, release.files))
    write_text(folder / PAGE, PAGE_TEXT.format(model=place))
    settings = {"sdk_version": pins["gradio"], "python_version": python_version(release.files), "app_file": PAGE}
    write_text(folder / "README.md", str(space_card(release, repo, settings)))


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def reached(root: Path, module: str) -> tuple[set[Path], set[str]]:
    """What importing a module takes: the project's files, relative to its root, and the names of others' packages.

    Imports inside functions count, those of the registry do not. Raises UserError where the project lacks the module.
    """
    path = Path(*module.split(".")).with_suffix(".py")
    if not (root / path).is_file():
        raise UserError(f"there was no {path} yet in this version: pin a newer commit")
    files, names, waiting = set(), set(), [path]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.add(path)
        waiting += [parent / "__init__.py" for parent in path.parents if (root / parent / "__init__.py").is_file()]
        for name in imports((root / path).read_text(encoding="utf-8")):
            own = [Path(*name.split(".")).with_suffix(".py"), Path(*name.split("."), "__init__.py")]
            waiting += [path for path in own if (root / path).is_file()]
            if not (root / name.partition(".")[0]).is_dir():
                names.add(name.partition(".")[0])
    return files, names - sys.stdlib_module_names - REGISTRY


def imports(source: str) -> set[str]:
    """The dotted names that a module's source imports; of ``from a import b`` both ``a`` and ``a.b``."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def data_files(root: Path) -> set[Path]:
    """What the demo's package holds beside modules: its style, its examples."""
    paths = (path for path in (root / ENTRY.partition(".")[0]).rglob("*") if path.is_file())
    return {path.relative_to(root) for path in paths if path.suffix not in (".py", ".pyc")}


def constraints(root: Path) -> dict[str, str]:
    """The version of each package that constraints.txt pins, by canonical name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonical(name): version.strip() for name, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def requirements(names: set[str], pins: dict[str, str], root: Path) -> str:
    """A requirements.txt of the imported packages at their pins, with the extras that pyproject.toml asks for.

    What those need in turn is left to pip, and so is what gradio's extras bound: a Space installs those too, and they
    may want other versions than our pins. Raises UserError where a package has no pin.
    """
    homes = packages_distributions()
    extras = dict(re.findall(r'"([\w.-]+)(\[[\w,-]+\])', (root / "pyproject.toml").read_text(encoding="utf-8")))
    extras = {canonical(name): extra for name, extra in extras.items()}
    wanted = {canonical(homes.get(name, [name])[0]) for name in names}
    if missing := sorted(wanted - pins.keys()):
        raise UserError(f"constraints.txt pins no {', '.join(missing)}, which the demo imports: add it")
    loose = {canonical(re.match(r"[\w.-]+", line)[0]) for line in requires("gradio") if "extra ==" in line}
    lines = [name if name in loose else f"{name}{extras.get(name, '')}=={pins[name]}" for name in sorted(wanted)]
    build = pins["torch"].partition("+")[2]  # 2.13.0+cpu is on an index of its own
    note = "" if build else "# torch for the CPU alone is much smaller: "
    return "\n".join([f"{note}--extra-index-url {CPU_INDEX.format(build or 'cpu')}", *lines, ""])


def python_version(root: Path) -> str:
    """The oldest that the project runs on, for a Space's default may be older."""
    return re.search(r'requires-python = ">=(3\.\d+)', (root / "pyproject.toml").read_text(encoding="utf-8"))[1]

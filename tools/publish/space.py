"""The folder of a Space: the demo's own modules, what they need, and the model with its card."""

import re
import shutil
import sys
from copy import deepcopy
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from stages.corpora.examples import write_examples
from stages.params_file import set_value, yaml_text
from stages.runtime.errors import UserError
from stages.runtime.files import write_text
from stages.runtime.imports import imported_names, reached_modules
from tools.publish.card import space_card
from tools.publish.release import Release

PACKAGE = "app"  # the demo
PAGE = "space.py"  # app.py would share its name with the package
PAGE_TEXT = '''"""The demo as a Space: the page of app.main with the model beside this file."""

import os
import sys
from pathlib import Path

from app.main import main
from stages.runtime.command import run

if __name__ == "__main__":
    os.chdir(Path(__file__).parent)  # where params.yaml is
    run(lambda: main, ["--models", "{model}", "--examples", "examples", "--host", "0.0.0.0", *sys.argv[1:]])
'''
ENTRIES = ("app.main", "stages.runtime.command")  # what the page imports
# What a clone needs for its pins and its examples; a Space has its one model and its example sounds beside it.
CLONE_ONLY = {"dvc", "dvc_data", "dvc_objects", "gto", "espeakng_loader"}
MANUAL = ("README.md", "page.png")  # of the demo's package
CPU_INDEX = "https://download.pytorch.org/whl/{}"


def write_space(release: Release, model: Path, repo: str, folder: Path) -> None:
    """Write a Space for a release: the code of its revision, and the folder with its model and card."""
    modules = demo_modules(release)
    for path in sorted(modules | package_files(modules, release.files) | data_files(release.files)):
        copy_file(path, folder / path.relative_to(release.files))
    copy_file(release.files / "LICENSE", folder / "LICENSE")
    place = release.name.replace("@", "-")
    for path in sorted(model.iterdir()):
        copy_file(path, folder / place / path.name)
    if release.synthetic:  # other corpora's voices are people's, who did not ask to be on a page
        write_examples(release.sources[0]["synthetic"]["seed"], folder / "examples")
    pins = read_constraints(release.files)
    params = deepcopy(release.params)
    set_value(params, "app.recordings", None)
    write_text(folder / "params.yaml", yaml_text(params))
    write_text(folder / "requirements.txt", requirements_text(imported_packages(modules), pins, release.files))
    write_text(folder / PAGE, PAGE_TEXT.format(model=place))
    card = space_card(release, repo, PAGE, pins["gradio"], oldest_python(release.files))
    write_text(folder / "README.md", str(card))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file; makes the folder where it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def demo_modules(release: Release) -> set[Path]:
    """The project's modules that the page reaches, in a release's files; raises UserError where they lack some."""
    modules: dict[str, Path] = {}
    for entry in ENTRIES:
        modules |= reached_modules(entry, root=release.files)
        if entry not in modules:
            path = f"{entry.replace('.', '/')}.py"
            raise UserError(f"{release.name} has no {path}, which a Space needs: pin a newer commit")
    return set(modules.values())


def package_files(modules: set[Path], root: Path) -> set[Path]:
    """The ``__init__.py`` of the packages that modules are in."""
    folders = {parent for path in modules for parent in path.relative_to(root).parents}
    return {root / folder / "__init__.py" for folder in folders if (root / folder / "__init__.py").is_file()}


def imported_packages(modules: set[Path]) -> set[str]:
    """The top-level names of others' packages that modules import, also inside functions, but for CLONE_ONLY."""
    names = {name for path in modules for name in imported_names(path.read_text(encoding="utf-8"))}
    own = {entry.partition(".")[0] for entry in ENTRIES}
    return {name.partition(".")[0] for name in names} - own - sys.stdlib_module_names - CLONE_ONLY


def data_files(root: Path) -> set[Path]:
    """The files that the demo's package needs beside its modules, such as its style; not its manual."""
    others = (path for path in (root / PACKAGE).rglob("*") if path.is_file() and path.name not in MANUAL)
    return {path for path in others if path.suffix not in (".py", ".pyc")}


def read_constraints(root: Path) -> dict[str, str]:
    """The version of each package that constraints.txt pins, by canonical name."""
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonical_name(name): version.strip() for name, version in pairs}


def canonical_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def requirements_text(names: set[str], pins: dict[str, str], root: Path) -> str:
    """A requirements.txt of the imported packages at their pins, with the extras that pyproject.toml asks for.

    What those need in turn is left to pip, and so is what gradio's extras constrain: a Space installs those too, and
    they may need other versions than our pins. Raises UserError where a package has no pin.
    """
    homes = packages_distributions()
    extras = dict(re.findall(r'"([\w.-]+)(\[[\w,-]+\])', (root / "pyproject.toml").read_text(encoding="utf-8")))
    extras = {canonical_name(name): extra for name, extra in extras.items()}
    wanted = {canonical_name(homes.get(name, [name])[0]) for name in names}
    if missing := sorted(wanted - pins.keys()):
        raise UserError(f"constraints.txt pins no {', '.join(missing)}, which the demo imports: add it")
    extra = "\n".join(line for line in requires("gradio") or [] if "extra ==" in line)
    loose = {canonical_name(name) for name in re.findall(r"(?m)^[\w.-]+", extra)}
    lines = [name if name in loose else f"{name}{extras.get(name, '')}=={pins[name]}" for name in sorted(wanted)]
    build = pins["torch"].partition("+")[2]  # 2.13.0+cpu is on an index of its own
    note = "" if build else "# torch for the CPU alone is much smaller: "
    return "\n".join([f"{note}--extra-index-url {CPU_INDEX.format(build or 'cpu')}", *lines, ""])


def oldest_python(root: Path) -> str:
    """The oldest Python that the project runs on, for a Space's default may be older."""
    (version,) = re.findall(r'requires-python = ">=(3\.\d+)', (root / "pyproject.toml").read_text(encoding="utf-8"))
    return version

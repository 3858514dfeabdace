"""A version of the model to publish, with all that its revision says of it; nothing is read from any other revision."""

import hashlib
import io
import json
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ruamel.yaml import YAML

from stages.runtime.errors import UserError
from stages.versioning.pins import ARTIFACT, WORKSPACE, Repository, Version, git
from tools.recipe import read

SPLITS = ("train", "validation", "test")
MEASURED = ("download", "train", "evaluate/pretrained", "evaluate/tuned", *(f"featurize/{split}" for split in SPLITS))
ISO = {"jw": "jv"}  # Whisper's one code that is none of ISO 639


@dataclass(frozen=True)
class Release:
    """A version with what its revision holds.

    revision: what to check out to have it again, 40 hex digits, with ``-dirty`` where a workspace has other changes.
    files: the project's files of that revision. model: the folder with the model's. params: params.yaml without this
    machine's paths. hashes: DVC's md5 of the outs, by path. metrics: all that was measured, by MEASURED's names.
    """

    version: Version
    revision: str
    files: Path
    model: Path
    params: Mapping
    hashes: dict[str, str]
    metrics: dict[str, dict]

    @property
    def name(self) -> str:
        return self.version.name

    @property
    def base(self) -> str | None:
        """The base model's id on the Hub, where it is there."""
        base = self.params["whisper"]["base"]
        return None if base == "scratch" or is_path(base) else base

    @property
    def language(self) -> str:
        """ISO 639 code."""
        code = self.params["whisper"]["language"]
        return ISO.get(code, code)

    @property
    def corpus(self) -> str:
        """synthetic, common_voice or folder."""
        return self.params["download"]["corpus"]

    @property
    def window(self) -> int:
        """Seconds that the model hears at once."""
        extractor = json.loads((self.model / "preprocessor_config.json").read_text(encoding="utf-8"))
        return extractor["chunk_length"]


@contextmanager
def opened(root: Path, name: str | None) -> Iterator[Release]:
    """The version of a name, by default the newest pin, for as long as the block lasts.

    Raises UserError where it cannot be had, or its scores are not those of its model.
    """
    repository = Repository(root)
    version = choose(repository.versions(), name)
    model = repository.folder(version)
    with revision(root, version) as (commit, files):
        lock = YAML(typ="safe", pure=True).load(text(files, "dvc.lock", version))["stages"]
        check_scores(version, lock, files)
        if not version.commit:
            check_workspace(root)
        params = without_paths(read(files / "params.yaml"))
        metrics = {name: measured(name, files, version, lock) for name in MEASURED}
        yield Release(version, commit, files, model, params, outs(lock), metrics)


def choose(versions: list[Version], name: str | None) -> Version:
    """The named one, or the newest pin; the pretrained model is not ours to publish."""
    known = {version.name: version for version in versions if version.name != "pretrained"}
    pins = [version for version in known.values() if version.commit]
    if name is None and not pins:
        raise UserError("no version is pinned yet: run `make pin VERSION=v1.0.0`, or give --model tuned")
    if name is not None and name not in known:
        raise UserError(f"there is no model {name}: choose one of {', '.join(known) or 'none'}")
    return pins[0] if name is None else known[name]


@contextmanager
def revision(root: Path, version: Version) -> Iterator[tuple[str, Path]]:
    """A version's revision, and a folder with the project's files as they are there: the workspace for its own."""
    if not version.commit:
        yield git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").decode().strip(), root
        return
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(git(root, "archive", version.commit))) as archive:
            archive.extractall(folder, filter="data")
        yield version.commit, Path(folder)


def measured(name: str, files: Path, version: Version, lock: dict) -> dict:
    """What people compare and the details beside it, of those of both that dvc.lock has; older versions have one."""
    paths = [path for path in (f"metrics/{name}.json", f"metrics/details/{name}.json") if path in outs(lock)]
    return {key: value for path in paths for key, value in json.loads(text(files, path, version)).items()}


def text(files: Path, name: str, version: Version) -> str:
    try:
        return (files / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{version.name} has no {name}: run `make repro`, commit what it wrote, and pin that") from None


def outs(lock: dict) -> dict[str, str]:
    """DVC's md5 of every out in dvc.lock, by path."""
    return {out["path"]: out["md5"] for stage in lock.values() for out in stage.get("outs", [])}


def check_scores(version: Version, lock: dict, files: Path) -> None:
    """Raise UserError where the scores are another model's: training went on after evaluate, or a file was changed."""
    for name, folder in WORKSPACE.items():
        scores = f"metrics/evaluate/{name}.json"
        measured = {dep["path"]: dep["md5"] for dep in lock.get(f"evaluate@{name}", {}).get("deps", [])}
        found = hashlib.md5(text(files, scores, version).encode()).hexdigest()
        made = outs(lock)
        if measured.get(folder) != made.get(folder) or found != made.get(scores):
            raise UserError(
                f"{version.name}: {scores} does not belong to {folder}: run `make repro`, commit, and pin that"
            )


def check_workspace(root: Path) -> None:
    """Raise UserError where the workspace's model is another than dvc.lock says."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        (out,) = repo.find_outs_by_path(str(root / WORKSPACE[ARTIFACT]))
        if out.changed_checksum():
            raise UserError(f"{WORKSPACE[ARTIFACT]} is not the model of dvc.lock: run `make repro`")


def without_paths(params: Mapping) -> Mapping:
    """params.yaml with the names alone of this machine's folders, which are nobody's business."""
    whisper, folder = params["whisper"], params["download"]["folder"]
    if is_path(whisper["base"]):
        whisper["base"] = f"./{Path(whisper['base']).name}"
    folder["path"] = Path(folder["path"]).name
    archive = params["download"]["common_voice"]
    archive["archive"] = Path(archive["archive"]).name
    return params


def is_path(base: str) -> bool:
    return base[0] in "./~"

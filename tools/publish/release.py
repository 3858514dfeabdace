"""A version of the model to publish, with all that its revision says about it; no other revision is read."""

import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap

from stages.asr.clips import SPLITS
from stages.params_file import read_document
from stages.runtime.errors import UserError
from stages.versioning.git import run_git
from stages.versioning.pins import ARTIFACT, WORKSPACE, Repository, Version, corpus_sources
from stages.versioning.revisions import LOCK, lock_stages, parse_record

MEASURED = ("download", "train", "evaluate/pretrained", "evaluate/tuned", *(f"featurize/{split}" for split in SPLITS))
ISO = {"jw": "jv"}  # Whisper's one code that is not of ISO 639


@dataclass(frozen=True)
class Release:
    """A version with what its revision holds.

    revision: the commit to check out to get it again, 40 hex digits, with ``-dirty`` where the workspace has changes
    since. files: the folder with the project's files of that revision. model: the folder with the model's. params:
    params.yaml, with its comments, without this machine's paths. hashes: DVC's md5 of deps and outs, by path. metrics:
    all that was measured, by MEASURED's names.
    """

    version: Version
    revision: str
    files: Path
    model: Path
    params: CommentedMap
    hashes: dict[str, str]
    metrics: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return self.version.name

    @property
    def base(self) -> str | None:
        """The base model's id on the Hub; None where it comes from elsewhere."""
        base = self.params["whisper"]["base"]
        return None if base == "scratch" or is_path(base) else base

    @property
    def language(self) -> str:
        """ISO 639 code."""
        code = self.params["whisper"]["language"]
        return ISO.get(code, code)

    @property
    def sources(self) -> list[dict[str, Any]]:
        """Params' section ``download`` as it is with each corpus alone: ``corpus``, and the section of that name."""
        download = self.params["download"]
        return list(corpus_sources(download).values()) or [download]

    @property
    def corpora(self) -> list[str]:
        """synthetic, common_voice, folder or hub, each once."""
        return list(dict.fromkeys(source["corpus"] for source in self.sources))

    @property
    def synthetic(self) -> bool:
        """Whether nothing else was trained on."""
        return self.corpora == ["synthetic"]

    @property
    def datasets(self) -> list[str] | None:
        """The corpora as the Hub knows them; None where it does not."""
        ids = {"hub": lambda source: source["hub"]["id"], "common_voice": lambda source: "common_voice"}
        known = [ids[source["corpus"]](source) for source in self.sources if source["corpus"] in ids]
        return list(dict.fromkeys(known)) or None

    @property
    def window(self) -> int:
        """Seconds of audio that the model takes at once."""
        extractor = json.loads((self.model / "preprocessor_config.json").read_text(encoding="utf-8"))
        return extractor["chunk_length"]


@contextmanager
def open_release(root: Path, name: str | None) -> Iterator[Release]:
    """The version of a name, by default the newest pin, for as long as the block lasts.

    Raises UserError where it is not available, or its scores do not belong to its model.
    """
    repository = Repository(root)
    version = choose_version(repository.versions(), name)
    model = repository.folder(version)
    with revision_files(root, version) as (revision, files):
        lock = lock_stages(read_project_file(files, LOCK, version))
        check_scores(version, lock, files)
        if not version.commit:
            check_workspace(root)
        params = without_paths(read_document(files / "params.yaml"))
        metrics = {name: read_measured(name, files, version, lock) for name in MEASURED}
        yield Release(version, revision, files, model, params, hashes(lock, "deps") | out_hashes(lock), metrics)


def choose_version(versions: list[Version], name: str | None) -> Version:
    """The named one, or the newest pin; the pretrained model is not ours to publish."""
    known = {version.name: version for version in versions if version.name != "pretrained"}
    pins = [version for version in known.values() if version.commit]
    if name is None and not pins:
        raise UserError("no version is pinned yet: run `make pin VERSION=v1.0.0`, or give --model tuned")
    if name is not None and name not in known:
        raise UserError(f"there is no model {name}: choose one of {', '.join(known) or 'none'}")
    return pins[0] if name is None else known[name]


@contextmanager
def revision_files(root: Path, version: Version) -> Iterator[tuple[str, Path]]:
    """A version's revision, and a folder with the project's files of it: the workspace for the workspace's model."""
    if not version.commit:
        yield run_git(root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").decode().strip(), root
        return
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(run_git(root, "archive", "--format=zip", version.commit))) as archive:
            archive.extractall(folder)  # never outside; tarfile promises that from Python 3.11.4 on only
        yield version.commit, Path(folder)


def read_measured(name: str, files: Path, version: Version, lock: dict[str, Any]) -> dict[str, Any]:
    """The metrics and the details of a stage, of those of both that dvc.lock has: older versions have one file."""
    made = out_hashes(lock)
    paths = [path for path in (f"metrics/{name}.json", f"metrics/details/{name}.json") if path in made]
    found = [parse_record(read_project_file(files, path, version), json.loads, path) for path in paths]
    return {key: value for values in found for key, value in values.items()}


def read_project_file(files: Path, name: str, version: Version) -> str:
    try:
        return (files / name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{version.name} has no {name}: run `make repro`, commit what it wrote, and pin that") from None


def out_hashes(lock: dict[str, Any]) -> dict[str, str]:
    """DVC's md5 of every out in dvc.lock's stages, by path."""
    return hashes(lock, "outs")


def hashes(lock: dict[str, Any], kind: str) -> dict[str, str]:
    return {item["path"]: item.get("md5", "") for stage in lock.values() for item in stage.get(kind, [])}


def check_scores(version: Version, lock: dict[str, Any], files: Path) -> None:
    """Raise UserError where the scores are another model's: training ran after evaluate, or a file was changed."""
    made = out_hashes(lock)
    for name, folder in WORKSPACE.items():
        scores = f"metrics/evaluate/{name}.json"
        measured = {dep["path"]: dep["md5"] for dep in lock.get(f"evaluate@{name}", {}).get("deps", [])}
        found = hashlib.md5(read_project_file(files, scores, version).encode()).hexdigest()
        if measured.get(folder) != made.get(folder) or found != made.get(scores):
            raise UserError(
                f"{version.name}: {scores} does not belong to {folder}: run `make repro`, commit, and pin that"
            )


def check_workspace(root: Path) -> None:
    """Raise UserError where the workspace's model is not the one in dvc.lock."""
    from dvc.repo import Repo

    with Repo(str(root)) as repo:
        (out,) = repo.find_outs_by_path(str(root / WORKSPACE[ARTIFACT]))
        if out.changed_checksum():
            raise UserError(f"{WORKSPACE[ARTIFACT]} is not the model of dvc.lock: run `make repro`")


def without_paths(params: CommentedMap) -> CommentedMap:
    """params.yaml with only the names of this machine's folders, whose paths are nobody else's business."""
    whisper, download = params["whisper"], params["download"]
    if is_path(whisper["base"]):
        whisper["base"] = f"./{Path(whisper['base']).name}"
    sources = [source for kind in ("corpora", "probes") for source in (download.get(kind) or {}).values()]
    changed = [source["set"] for source in sources if source.get("set")]
    for section in (download["folder"], download["common_voice"], *changed):
        for key in ("path", "archive"):
            if named := section.get(key):
                section[key] = Path(named).name
    return params


def is_path(base: str) -> bool:
    return base[0] in "./~"

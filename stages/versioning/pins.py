"""The versions of the model that can be chosen: what each is, its scores, and the folder with its files.

In a clone of the project these are the versions of the artifact ``tuned`` that annotated Git tags pin, as DVC's
registry reads them, and the workspace's models; in a Space the one model that was published with it.
"""

import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.params import merge
from stages.runtime.errors import UserError, one_line
from stages.versioning.cache import Report, fetch_folder, link_folder
from stages.versioning.git import read_blobs, run_git

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo

UNUSED_SECONDS = 86_400  # after which a pin's folder, of links that cost nothing to make again, is deleted
ARTIFACT = "tuned"  # in dvc.yaml
OWN_LENGTH = "clip"  # of the WER in a card that is measured as the demo decodes, among the metric's ``args``
NAMING_KEYS = {"common_voice": "archive", "folder": "path", "hub": "id"}  # of a corpus's section: what it is called
WORKSPACE = {"tuned": "models/tuned", "pretrained": "models/pretrained"}
SCORES, PARAMS = "metrics/evaluate/{}.json", "params.yaml"
CLIPS, OLDER_CLIPS = "metrics/details/featurize/train.json", "metrics/featurize/train.json"  # of older versions


@dataclass(frozen=True)
class Version:
    """A model that can be chosen.

    name: ``tuned@v1.0.0`` of a pin, ``tuned`` and ``pretrained`` of the workspace, or a Space's folder. commit: 40 hex
    digits, "" where it is not a pin. wer: percent on the test split with its 95 % interval, None where it was not
    measured. data: what it was trained on, "synthetic, 3,000 clips", "" where that is unknown.
    """

    name: str
    commit: str
    wer: float | None
    wer_low: float | None
    wer_high: float | None
    data: str
    untrained: bool

    def __str__(self) -> str:
        """Its score and its training data: ``WER 1.9 % (1.0 to 2.8), synthetic, 3,000 clips``."""
        wer = "WER not measured" if self.wer is None else f"WER {self.wer:.1f} %"
        interval = "" if None in (self.wer_low, self.wer_high) else f" ({self.wer_low:.1f} to {self.wer_high:.1f})"
        return ", ".join(part for part in (wer + interval, self.data, "untrained" * self.untrained) if part)


class Repository:
    """The models of a clone of the project. Raises UserError where Git fails in it."""

    def __init__(self, root: Path):
        self.root = root
        self.pinned: dict[tuple[str, str], Version] = {}  # by name and commit, which determine the rest
        self.folders: dict[str, Path] = {}  # of the pins fetched so far, by commit
        self.fetching = threading.Lock()  # one at a time: a file that two pins share would be seen half copied

    def versions(self) -> list[Version]:
        """The pins, the newest first, then what the workspace has."""
        tags = list(pinned_commits(self.root).items())
        if unknown := [tag for tag in tags if tag not in self.pinned]:
            self.pinned |= zip(unknown, pinned_versions(self.root, unknown), strict=True)
        present = [name for name, folder in WORKSPACE.items() if any((self.root / folder).glob("*.safetensors"))]
        read = partial(read_if_present, self.root)
        clips = read(CLIPS) or read(OLDER_CLIPS)
        return [
            *(self.pinned[tag] for tag in tags),
            *(make_version(name, "", read(SCORES.format(name)), clips, read(PARAMS)) for name in present),
        ]

    def folder(self, version: Version, report: Report = lambda share: None) -> Path:
        """The folder with a version's files; those of a pin are fetched where they are missing. Raises UserError.

        report: called from other threads while they come.
        """
        if not version.commit:
            return self.root / WORKSPACE[version.name]
        with self.fetching:
            if version.commit not in self.folders or not self.folders[version.commit].is_dir():
                self.folders[version.commit] = pinned_folder(self.root, version, report)
        folder = self.folders[version.commit]
        with contextlib.suppress(OSError):  # a read-only clone's are for ever
            os.utime(folder)  # in use
        return folder


class PublishedFolder:
    """The one model in a folder that was published with its card, whose model-index has its ``wer`` and its data."""

    def __init__(self, path: Path):
        self.path = path

    def versions(self) -> list[Version]:
        if not any(self.path.glob("*.safetensors")):
            return []
        note = parse_mapping(read_if_present(self.path, "config.json"), json.loads).get("viska") or {}
        card = read_card(read_if_present(self.path, "README.md") or "")
        return [Version(self.path.resolve().name, "", *card, bool(note.get("untrained")))]

    def folder(self, version: Version, report: Report = lambda share: None) -> Path:
        return self.path


def read_card(readme: str) -> tuple[float | None, float | None, float | None, str]:
    """A model card's ``wer`` as the demo decodes, else its first; its interval (``args``), and its dataset's name."""
    from huggingface_hub import ModelCard, ModelCardData
    from yaml import YAMLError  # of PyYAML, which huggingface_hub uses

    try:
        data = ModelCard(readme, ignore_metadata_errors=True).data
    except (ValueError, TypeError, YAMLError):
        data = None
    results = (data.eval_results if isinstance(data, ModelCardData) else None) or []
    rates = [
        (result, result.metric_args if isinstance(result.metric_args, dict) else {})
        for result in results
        if result.metric_type == "wer"
    ]
    if not rates:
        return None, None, None, ""
    result, args = next((rate for rate in rates if rate[1].get("context") == OWN_LENGTH), rates[0])
    wer, low, high = (as_float(value) for value in (result.metric_value, args.get("low"), args.get("high")))
    return wer, low, high, str(result.dataset_name or "")


# What the registry and the metrics say


def pinned_commits(root: Path) -> dict[str, str]:
    """The commits of the pins by name, ``tuned@v1.0.0``, the newest version first.

    As DVC's registry, which is GTO's, reads them: annotated tags alone; the last tag of a version counts, which may
    withdraw it (``tuned@v1.0.0!``), or everything so far (``tuned@deprecated``).
    """
    if not (root / ".git").exists():
        return {}
    from gto.constants import Action
    from gto.tag import parse_name
    from gto.versions import SemVer

    form = "--format=%(type) %(object) %(refname:strip=2)"  # of the tag itself, whose commit may be missing
    listed = run_git(root, "for-each-ref", "--sort=taggerdate", form, f"refs/tags/{ARTIFACT}@*").decode()
    commits: dict[str, str] = {}
    for line in listed.splitlines():
        kind, commit, tag = line.split(" ", 2)
        if kind != "commit":
            continue
        parts = parse_name(tag, raise_on_fail=False)
        match parts.get("action"):
            case Action.REGISTER:
                commits[parts["version"]] = commit
            case Action.DEREGISTER:
                commits.pop(parts["version"], None)
            case Action.DEPRECATE:
                commits.clear()
    return {f"{ARTIFACT}@{version}": commits[version] for version in sorted(commits, key=SemVer, reverse=True)}


def pinned_versions(root: Path, tags: list[tuple[str, str]]) -> list[Version]:
    """The versions that pins, given as (name, commit), stand for, as their commits have them."""
    paths = (SCORES.format(ARTIFACT), CLIPS, OLDER_CLIPS, PARAMS)
    texts = iter(read_blobs(root, [f"{commit}:{path}" for _, commit in tags for path in paths]))
    versions = []
    for name, commit in tags:
        scores, clips, older, params = islice(texts, len(paths))
        versions.append(make_version(name, commit, scores, clips or older, params))
    return versions


@lru_cache(maxsize=256)  # the demo asks for each recording, and reading YAML takes a tenth of a second
def make_version(name: str, commit: str, scores: str | None, clips: str | None, params: str | None) -> Version:
    """A version from the texts of its scores, of the train features' counts and of params.yaml, if any."""
    measured = parse_mapping(scores, json.loads)
    trained = parse_mapping(clips, json.loads).get("clips")
    corpus = corpus_name(parse_mapping(params, YAML(typ="safe", pure=True).load).get("download"))
    data = ", ".join(part for part in (corpus, f"{trained:,} clips" if isinstance(trained, int) else "") if part)
    wer, low, high = (as_float(measured.get(key)) for key in ("wer", "wer_low", "wer_high"))
    return Version(name, commit, wer, low, high, data, bool(measured.get("untrained")))


def corpus_name(download: object) -> str:
    """What to call the data of params.yaml's section ``download``, which may come from an older version."""
    if not isinstance(download, dict):
        return ""
    if sources := corpus_sources(download):
        return " + ".join(corpus_name(source) for source in sources.values())
    corpus = download.get("corpus")
    if not (key := NAMING_KEYS.get(str(corpus))):
        return str(corpus or "")
    section = download.get(corpus) or {}
    name = section.get(key)
    if corpus == "common_voice" and (release := section.get("release")):
        name = f"cv-corpus-{release}-{section.get('locale')}"
    return Path(str(name)).name.removesuffix(".tar.gz") if name else str(corpus)


def corpus_sources(download: dict[str, Any], kind: str = "corpora") -> dict[str, dict[str, Any]]:
    """What ``download`` would be with each of its corpora, or of its probes, alone, by name and sorted."""
    found = {}
    for name, source in sorted((download.get(kind) or {}).items()):
        corpus = source["corpus"]
        found[name] = {"corpus": corpus, corpus: merge(download.get(corpus) or {}, source.get("set") or {})}
    return found


def parse_mapping(text: str | None, load: Callable[[str], Any]) -> dict[str, Any]:
    """A text's mapping; empty where there is none."""
    try:
        values = load(text or "")
    except (ValueError, YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def as_float(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_if_present(root: Path, name: str) -> str | None:
    try:
        return (root / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


# What DVC has


def pinned_folder(root: Path, version: Version, report: Report = lambda share: None) -> Path:
    """The folder with a pin's whole model, below DVC's own for temporary files and named by its hash.

    Its files are links to DVC's cache, into which they are fetched first from the remote where it lacks them. What
    others there were is deleted when it was not used for a day. Raises UserError where it is not available.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    os.environ.setdefault("GDRIVE_NON_INTERACTIVE", "1")  # an expired sign-in is an error, not a wait
    try:
        with Repo(str(root)) as repo:
            out = pinned_out(repo, version)
            folder = Path(repo.tmp_dir, "app", out.hash_info.value.removesuffix(".dir"))
            if not folder.is_dir():
                link_folder(repo.cache.local, fetch_folder(repo, out, version.name, report=report), folder)
            delete_unused(folder.parent, folder)
            return folder
    except DvcException as error:
        raise UserError(f"{version.name} is not available: {one_line(error)}") from None


def delete_unused(folder: Path, keep: Path) -> None:
    """Delete what nobody used for a day in the folder of all pins' folders: older pins, and what broke off."""
    now = time.time()
    for path in set(folder.iterdir()) - {keep}:
        with contextlib.suppress(OSError):  # another process may be at it too
            if now - path.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(path)


def pinned_out(repo: "Repo", version: Version) -> "Output":
    """The artifact's out as the version's commit has it; raises UserError where it has none."""
    from dvc.exceptions import ArtifactNotFoundError, OutputNotFoundError
    from dvc.scm import RevError

    try:
        with repo.switch(version.commit):
            path = repo.artifacts.get_path(ARTIFACT)
            (out,) = repo.find_outs_by_path(repo.fs.join(repo.root_dir, path))
    except RevError:
        raise UserError(
            f"{version.name}: its commit {version.commit[:7]} is not in this clone: run `git fetch --tags`, "
            f"in a shallow clone `git fetch --tags --unshallow`"
        ) from None
    except (ArtifactNotFoundError, OutputNotFoundError):
        out = None
    if not out or not out.hash_info or not out.is_dir_checksum:
        raise UserError(f"{version.name}: DVC tracks no model {ARTIFACT} at its commit {version.commit[:7]}")
    return out

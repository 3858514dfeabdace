"""Which models there are to choose from: what each is, how it measured, and the folder in which its bytes lie.

In the project these are the versions of the artifact ``tuned`` that annotated Git tags pin, as DVC's registry reads
them, and the workspace's models; in a Space the one model that came with it.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.runtime.errors import UserError, one_line
from stages.runtime.files import link_or_copy
from stages.versioning.remotes import bound_waiting

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc_data.hashfile.hash_info import HashInfo

ARTIFACT = "tuned"  # in dvc.yaml
WORKSPACE = {"tuned": "models/tuned", "pretrained": "models/pretrained"}
SCORES, PARAMS = "metrics/evaluate/{}.json", "params.yaml"
CLIPS, OLDER_CLIPS = "metrics/details/featurize/train.json", "metrics/featurize/train.json"  # of older versions


@dataclass(frozen=True)
class Version:
    """A model that can be chosen.

    name: ``tuned@v1.0.0`` of a pin, ``tuned`` and ``pretrained`` of the workspace, or a Space's folder. commit: 40 hex
    digits, "" where it is no pin. wer: percent on the test split with its 95 % interval, None where it was not
    measured. data: what it was trained on, "synthetic, 3,000 clips", "" where that is not known.
    """

    name: str
    commit: str
    wer: float | None
    wer_low: float | None
    wer_high: float | None
    data: str
    untrained: bool

    def __str__(self) -> str:
        """What was measured, and on what data: ``WER 1.9 % (1.0 to 2.8), synthetic, 3,000 clips``."""
        wer = "WER not measured" if self.wer is None else f"WER {self.wer:.1f} %"
        interval = "" if None in (self.wer_low, self.wer_high) else f" ({self.wer_low:.1f} to {self.wer_high:.1f})"
        return ", ".join(part for part in (wer + interval, self.data, "untrained" * self.untrained) if part)


class Repository:
    """The models of a clone of the project. Raises UserError where Git refuses it."""

    def __init__(self, root: Path):
        self.root = root
        self.pinned: dict[tuple[str, str], Version] = {}  # by name and commit, which say all
        self.folders: dict[str, Path] = {}  # of pins that are here, by commit

    def versions(self) -> list[Version]:
        """The pins, the newest first, then what the workspace has."""
        tags = pins(self.root)
        if unknown := [tag for tag in tags.items() if tag not in self.pinned]:
            self.pinned |= zip(unknown, pinned_versions(self.root, unknown), strict=True)
        there = [name for name, folder in WORKSPACE.items() if any((self.root / folder).glob("*.safetensors"))]
        read = partial(read_text, self.root)
        clips = read(CLIPS) or read(OLDER_CLIPS)
        return [
            *(self.pinned[tag] for tag in tags.items()),
            *(describe(name, "", read(SCORES.format(name)), clips, read(PARAMS)) for name in there),
        ]

    def folder(self, version: Version) -> Path:
        """Where a version's files are; those of a pin are fetched where they are missing. Raises UserError."""
        if not version.commit:
            return self.root / WORKSPACE[version.name]
        if version.commit not in self.folders or not self.folders[version.commit].is_dir():
            self.folders[version.commit] = pinned_folder(self.root, version)
        return self.folders[version.commit]


class Published:
    """The model in a folder that was published with its card, whose model-index says its ``wer`` and its data."""

    def __init__(self, path: Path):
        self.path = path

    def versions(self) -> list[Version]:
        if not any(self.path.glob("*.safetensors")):
            return []
        note = parsed(read_text(self.path, "config.json"), json.loads).get("viska") or {}
        card = card_values(read_text(self.path, "README.md") or "")
        return [Version(self.path.resolve().name, "", *card, bool(note.get("untrained")))]

    def folder(self, version: Version) -> Path:
        return self.path


def card_values(readme: str) -> tuple[float | None, float | None, float | None, str]:
    """A model card's first ``wer`` with its interval, the metric's ``args`` low and high, and its dataset's name."""
    from huggingface_hub import ModelCard
    from yaml import YAMLError  # another library's, which huggingface_hub uses

    try:
        results = ModelCard(readme, ignore_metadata_errors=True).data.eval_results or []
    except (ValueError, TypeError, YAMLError):
        results = []
    for result in results:
        if result.metric_type == "wer":
            args = result.metric_args if isinstance(result.metric_args, dict) else {}
            bounds = number(args.get("low")), number(args.get("high"))
            return number(result.metric_value), *bounds, str(result.dataset_name or "")
    return None, None, None, ""


# What the registry and the metrics say


def pins(root: Path) -> dict[str, str]:
    """The commits of the pins by name, ``tuned@v1.0.0``, the newest version first.

    As DVC's registry, which is GTO's, has it: of annotated tags alone; the last word on a version counts, which may be
    that it is withdrawn (``tuned@v1.0.0!``), or everything so far (``tuned@deprecated``).
    """
    if not (root / ".git").exists():
        return {}
    from gto.constants import Action
    from gto.tag import parse_name
    from gto.versions import SemVer

    form = "--format=%(type) %(object) %(refname:strip=2)"  # of the tag itself, whose commit may be missing
    listed = git(root, "for-each-ref", "--sort=taggerdate", form, f"refs/tags/{ARTIFACT}@*").decode()
    commits: dict[str, str] = {}
    for line in listed.splitlines():
        kind, commit, tag = line.split(" ", 2)
        if kind != "commit":
            continue
        said = parse_name(tag, raise_on_fail=False)
        match said.get("action"):
            case Action.REGISTER:
                commits[said["version"]] = commit
            case Action.DEREGISTER:
                commits.pop(said["version"], None)
            case Action.DEPRECATE:
                commits.clear()
    return {f"{ARTIFACT}@{version}": commits[version] for version in sorted(commits, key=SemVer, reverse=True)}


def pinned_versions(root: Path, tags: list[tuple[str, str]]) -> list[Version]:
    """What the commits of pins, given as (name, commit), say of them."""
    paths = (SCORES.format(ARTIFACT), CLIPS, OLDER_CLIPS, PARAMS)
    texts = iter(blobs(root, [f"{commit}:{path}" for _, commit in tags for path in paths]))
    versions = []
    for name, commit in tags:
        scores, clips, older, params = islice(texts, len(paths))
        versions.append(describe(name, commit, scores, clips or older, params))
    return versions


def describe(name: str, commit: str, scores: str | None, clips: str | None, params: str | None) -> Version:
    """A version by the texts of its scores, of the train features' counts and of params.yaml, as far as there are."""
    measured = parsed(scores, json.loads)
    trained = parsed(clips, json.loads).get("clips")
    corpus = corpus_name(parsed(params, YAML(typ="safe", pure=True).load).get("download"))
    data = ", ".join(part for part in (corpus, f"{trained:,} clips" if isinstance(trained, int) else "") if part)
    numbers = [number(measured.get(key)) for key in ("wer", "wer_low", "wer_high")]
    return Version(name, commit, *numbers, data, bool(measured.get("untrained")))


def corpus_name(download: object) -> str:
    """What people call the data of params.yaml's section ``download``, which may be that of an older day."""
    if not isinstance(download, dict):
        return ""
    corpus = download.get("corpus")
    key = {"common_voice": "archive", "folder": "path"}.get(corpus)
    name = (download.get(corpus) or {}).get(key) if key else None
    return Path(str(name)).name.removesuffix(".tar.gz") if name else str(corpus or "")


def parsed(text: str | None, load) -> dict:
    """A text's mapping; empty where there is none."""
    try:
        values = load(text or "")
    except (ValueError, YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_text(root: Path, name: str) -> str | None:
    try:
        return (root / name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


# What Git has


def git(root: Path, *arguments: str, typed: bytes = b"") -> bytes:
    """What a Git command prints; what it complains of is a UserError."""
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], input=typed, capture_output=True)
    except FileNotFoundError:
        raise UserError("the program git is missing: install it") from None
    if result.returncode:
        raise UserError(" ".join(result.stderr.decode(errors="replace").split()) or f"git {arguments[0]} failed")
    return result.stdout


def blobs(root: Path, names: list[str]) -> list[str | None]:
    """The texts of files, named ``<commit>:<path>``; None for what is not there."""
    rest, texts = git(root, "cat-file", "--batch", typed="\n".join(names).encode()), []
    for _ in names:
        head, _, rest = rest.partition(b"\n")
        size = 0 if head.endswith(b" missing") else int(head.rsplit(b" ", 1)[1])
        texts.append(rest[:size].decode(errors="replace") if size else None)
        rest = rest[size + 1 :] if size else rest
    return texts


# What DVC has


def pinned_folder(root: Path, version: Version) -> Path:
    """The folder with a pin's model, whole, below DVC's own for temporary files and named by its hash.

    Its files are links to DVC's cache, into which they are fetched first from the remote where it lacks them. Raises
    UserError where it cannot be had.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc_data.hashfile.tree import Tree

    os.environ.setdefault("GDRIVE_NON_INTERACTIVE", "1")  # a sign-in that has ended is an error, not a wait
    try:
        with Repo(str(root)) as repo:
            out = pinned_out(repo, version)
            folder = Path(repo.tmp_dir, "app", out.hash_info.value.removesuffix(".dir"))
            if not folder.is_dir():
                bring(repo, version, out, [out.hash_info])
                tree = Tree.load(repo.cache.local, out.hash_info)
                bring(repo, version, out, [info for _, _, info in tree])
                link(((key, repo.cache.local.oid_to_path(info.value)) for key, _, info in tree), folder)
            return folder
    except DvcException as error:
        raise UserError(f"{version.name} cannot be had: {one_line(error)}") from None


def pinned_out(repo: "Repo", version: Version) -> "Output":
    """The artifact's out as its commit has it."""
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
        raise UserError(f"{version.name}: DVC keeps no model {ARTIFACT} at its commit {version.commit[:7]}")
    return out


def bring(repo: "Repo", version: Version, out: "Output", wanted: "list[HashInfo]") -> None:
    """Have objects in the cache, fetched and verified where they are not; raises UserError where that fails."""
    from dvc.config import NoRemoteError

    cache = repo.cache.local
    if all(in_cache(cache, info.value) for info in wanted):
        return
    name = out.remote or repo.config["core"].get("remote")
    later = f"and choose it again, or run `dvc fetch --all-tags {WORKSPACE[ARTIFACT]}`"
    try:
        odb = repo.cloud.get_remote_odb(name, "fetch")
        odb.verify = True
        bound_waiting(odb.fs)
        repo.cloud.pull(wanted, odb=odb)
        reason = "it does not answer, or lacks a part of it, or holds one damaged"
    except NoRemoteError:
        raise UserError(
            f"{version.name} is not in DVC's cache, and there is no default remote to fetch it from: "
            f"run `dvc remote add --default NAME URL` with that of whoever pinned it, {later}"
        ) from None
    except Exception as error:  # a remote's libraries raise anything
        reason = one_line(error)
    if not all(in_cache(cache, info.value) for info in wanted):
        raise UserError(
            f"{version.name} could not be fetched from the remote {name} ({reason}): "
            f"see to the connection, have whoever pinned it run `make push`, {later}"
        )


def in_cache(cache, oid: str) -> bool:
    """Whether the local cache has an object; DVC checks, and drops, one that was changed."""
    from dvc_objects.errors import ObjectFormatError

    try:
        cache.check(oid)
    except (FileNotFoundError, ObjectFormatError):
        return False
    return True


def link(files: Iterable[tuple[tuple[str, ...], str]], folder: Path) -> None:
    """Fill a folder, whole or not at all, with files by their names' parts: hard links where they can be had."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
        part = Path(aside, folder.name)
        for names, source in files:
            target = part.joinpath(*names)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(source, str(target))
        try:
            part.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was first
                raise

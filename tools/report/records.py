"""What the last run of a revision left: metrics, tables and curves, read from Git or from the workspace."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.asr.clips import SPLITS
from stages.runtime.errors import UserError
from stages.versioning.git import read_blobs
from stages.versioning.pins import read_if_present
from stages.versioning.revisions import WORKSPACE_NAME, Revision, parse_record

MODELS = ("pretrained", "tuned")
GROUPS = ("lengths", "speakers", "conditions", "probes")  # of clips, each with its own table of WERs
FEATURES = (*SPLITS, "probes")
METRICS = ("download", *(f"featurize/{name}" for name in FEATURES), "train", *(f"evaluate/{model}" for model in MODELS))
TRAINING, VALIDATION = "metrics/curves/training.tsv", "metrics/curves/validation.tsv"
TABLE = "metrics/tables/{}/{}.tsv"
PROJECT, PINS = "pyproject.toml", "constraints.txt"
FILES = [
    *(f"{folder}/{name}.json" for name in METRICS for folder in ("metrics", "metrics/details")),
    TRAINING,
    VALIDATION,
    *(TABLE.format(model, name) for model in MODELS for name in (*GROUPS, "confusions")),
    PROJECT,
    PINS,
]

Numbers = Mapping[str, Any]  # a stage's, by name


@dataclass(frozen=True)
class Record:
    """texts: of FILES, None for each that the revision does not have."""

    revision: Revision
    texts: Mapping[str, str | None]

    def numbers(self, name: str) -> dict[str, Any]:
        """What stands of ``name`` among the metrics and among their details; empty where neither is there."""
        paths = [f"{folder}/{name}.json" for folder in ("metrics", "metrics/details")]
        found = [parse_record(self.texts[path], json.loads, path) for path in paths]
        return {key: value for values in found for key, value in values.items()}

    def needed(self, name: str) -> Numbers:
        """The same; raises UserError where there is nothing."""
        if numbers := self.numbers(name):
            return numbers
        here = "" if self.revision.name == WORKSPACE_NAME else f" at {self.revision.name}"
        raise UserError(f"metrics/{name}.json is missing{here}: run `make repro`")

    def rows(self, path: str) -> list[dict[str, str]]:
        """Of a table without quotes, by column; none where it is missing."""
        return list(csv.DictReader((self.texts[path] or "").splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def read_record(root: Path, revision: Revision) -> Record:
    if revision.commit:
        texts = read_blobs(root, [f"{revision.commit}:{path}" for path in FILES])
    else:
        texts = [read_if_present(root, path) for path in FILES]
    return Record(revision, dict(zip(FILES, texts, strict=True)))


def probe_scores(scores: Numbers) -> dict[str, dict[str, Any]]:
    """All that was measured of a model on each probe, by its name; empty where there are none."""
    return {name: {**scores["probe_details"][name], **found} for name, found in scores.get("probes", {}).items()}


def dropped_counts(record: Record) -> list[tuple[str, str, dict[str, int]]]:
    """Where clips were dropped: (stage, split, number of clips by reason); nothing of what has not run."""
    found = record.numbers("download")
    counts = [("download", split, found[split]["dropped"]) for split in SPLITS if split in found]
    counts += [("featurize", split, record.numbers(f"featurize/{split}").get("dropped", {})) for split in SPLITS]
    for stage, probes in (
        ("download", found.get("probes", {})),
        ("featurize", record.numbers("featurize/probes")),
        ("evaluate", probe_scores(record.numbers("evaluate/tuned"))),
    ):
        counts += [(stage, f"probes/{name}", probe["dropped"]) for name, probe in probes.items()]
    counts.append(("train", "train and validation", record.numbers("train").get("dropped", {})))
    counts.append(("evaluate", "test", record.numbers("evaluate/tuned").get("dropped", {})))
    return counts

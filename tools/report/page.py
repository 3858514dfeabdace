"""Revisions as one HTML file that asks nothing of the network; the same input gives the same bytes."""

import csv
import json
import shlex
import string
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from dvc.exceptions import DvcException
from dvc.repo import Repo

from stages.asr.clips import SPLITS, Drop
from stages.runtime.errors import UserError, one_line
from stages.runtime.files import write_text
from stages.versioning.git import run_git
from stages.versioning.pins import corpus_name, corpus_sources
from stages.versioning.revisions import (
    Provenance,
    Revision,
    check_current,
    commit_of,
    digest,
    provenance,
    read_lock,
    tracked_file,
    tracked_member,
)
from tools.compare.transcripts import OtherClipsError, System, TestSet, load_systems
from tools.report.figures import curve_plots, group_plots, model_series, score_plot
from tools.report.records import MODELS, PINS, PROJECT, TABLE, Record, dropped_counts, probe_scores
from tools.report.rendering import MEGABYTE, render
from tools.report.sentences import MOST_HEARD, Spoken, fitting, raw_audio, spoken_clips
from tools.report.terminal import EDIT_COUNTS, ROWS, interval_text, probe_note

if TYPE_CHECKING:
    from tools.compare.differences import Result

RAW = "data/raw/test"
AT_ONCE = 20  # sentences before one asks for more
MOST_DROPS = 100  # listed one by one
SAMPLES, SEED = 10_000, 1  # of the bootstrap: as tools.compare has them unless told otherwise


def write_page(root: Path, records: Sequence[Record], path: Path) -> str:
    """Write the page of one revision, or of two side by side; returns a line that says so.

    Scores older than their model are left out, and so are sentences whose transcripts cannot be had; the page says so.
    Raises UserError where no run is recorded, or where the revisions have other test sets.
    """
    locks = [read_lock(root, record.revision) for record in records]
    notes: list[str] = []
    records = [without_stale(record, lock, notes) for record, lock in zip(records, locks, strict=True)]
    heard = load_heard(root, records, notes)
    context = page_context(root, records, locks, heard, notes)
    text = render("page.html", context)
    write_text(path, text)
    return f"{path}: {len(text.encode()) / MEGABYTE:.1f} MB, to open in a browser"


# What there is


def without_stale(record: Record, lock: dict[str, Any], notes: list[str]) -> Record:
    """The record without scores that are not of its models, as those of a training whose model was not evaluated."""
    for model in MODELS:
        try:
            check_current(record.revision, lock, f"evaluate@{model}")
        except UserError as error:
            notes.append(f"Test scores of models/{model} are left out: {error}")
            parts = (f"evaluate/{model}", f"tables/{model}/")
            kept = {path: None if any(part in path for part in parts) else text for path, text in record.texts.items()}
            record = replace(record, texts=kept)
    return record


@dataclass(frozen=True)
class Heard:
    """What was heard of one test set; result: the comparison of two revisions, else None."""

    labels: list[str]
    systems: list[System]
    test: TestSet
    result: "Result | None"


def load_heard(root: Path, records: Sequence[Record], notes: list[str]) -> Heard | None:
    """The tuned models' transcripts, of one revision the base model's too; None where they are not to be had."""
    names = tuple(record.revision.name for record in records)
    if not all(record.numbers("evaluate/tuned") for record in records):
        return None
    try:
        systems, test, found = load_systems(root, names, "tuned")
    except OtherClipsError:
        raise
    except UserError as error:
        notes.append(f"Sentences are left out: {error}")
        return None
    notes += found
    if len(records) > 1:
        from tools.compare.differences import compare  # seconds to import

        return Heard(["A", "B"], systems, test, compare(systems, test, samples=SAMPLES, seed=SEED, sentences=0))
    base = records[0].numbers("evaluate/pretrained")
    if not base or base.get("untrained"):
        return Heard(["tuned"], systems, test, None)
    try:
        before, _, _ = load_systems(root, names, "pretrained")
    except UserError as error:
        notes.append(f"What models/pretrained heard is left out: {error}")
        return Heard(["tuned"], systems, test, None)
    return Heard(list(MODELS), before + systems, test, None)


def dropped_clips(root: Path, records: Sequence[Record], notes: list[str]) -> list[tuple[str, Drop]]:
    """The clips that were left out, with the stage that did; of two revisions the second's.

    Only those lists are looked for that hold any, in the cache, on the remote or in the workspace.
    """
    record = records[-1]
    wanted = {}
    for stage, split, reasons in dropped_counts(record):
        if reasons and stage != "evaluate":
            folder, name = ("data", f"dropped{'-train' * (stage == 'train')}.tsv")
            if stage == "featurize":
                folder, name = f"data/features/{split}", "dropped.tsv"
            wanted[folder, name] = stage
    rows = []
    try:
        with Repo(str(root)) as repo:
            for (folder, name), stage in wanted.items():
                try:
                    rows += [(stage, drop) for drop in read_drops(repo, record.revision, folder, name)]
                except UserError as error:
                    notes.append(f"What {stage} dropped is not listed: {error}")
    except DvcException as error:
        raise UserError(f"{root.resolve()} is no repository of DVC's: {one_line(error)}") from None
    return rows


def read_drops(repo: Repo, revision: Revision, folder: str, name: str) -> list[Drop]:
    inside = folder != "data"
    path = tracked_member(repo, revision, folder, name) if inside else tracked_file(repo, revision, f"{folder}/{name}")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Drop(**row) for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)]


# What the page says


def page_context(
    root: Path, records: Sequence[Record], locks: list[dict[str, Any]], heard: Heard | None, notes: list[str]
) -> dict[str, Any]:
    names = [record.revision.name for record in records]
    labels = list(string.ascii_uppercase[: len(records)]) if len(records) > 1 else names
    origins = [provenance(lock, last_stage(lock)) for lock in locks]
    series = model_series(records, labels)
    clips = spoken_clips(heard.systems, heard.test) if heard else []
    result = heard.result if heard else None
    dropped = dropped_clips(root, records, notes)
    return {
        "title": " and ".join(names),
        "labels": labels,
        "revisions": [about(root, *one) for one in zip(labels, records, origins, strict=True)],
        "abstract": abstract(records, labels),
        "verdict": verdict_texts(result) if result else [],
        "scores": score_table(records, labels),
        "score_plot": score_plot(score_rows(records, labels)),
        "edits": edit_texts(records, labels),
        "curves": curve_plots(series),
        "groups": group_plots([one for one in series if one.record.numbers(f"evaluate/{one.model}")]),
        "confusions": [
            (label, rows) for label, record in zip(labels, records, strict=True) if (rows := confusion_rows(record))
        ],
        "sentences": sentences_context(root, clips, heard),
        "splits": split_tables(records, labels),
        "drop_counts": drop_counts(records),
        "drops": [(stage, asdict(drop)) for stage, drop in dropped[:MOST_DROPS]],
        "drops_left": max(0, len(dropped) - MOST_DROPS),
        "differences": difference_rows(origins) if len(records) > 1 else {},
        "params": value_rows([used_params(origin.params) for origin in origins]),
        "outs": out_rows(locks),
        "pins": value_rows([pinned_versions(record) for record in records]),
        "commands": commands(root, records, labels),
        "notes": notes,
    }


def last_stage(lock: dict[str, Any]) -> str:
    """Of those that made the tuned model and its scores, the last that ran."""
    for stage in ("evaluate@tuned", "train"):
        if stage in lock:
            return stage
    return list(lock)[-1]


def about(root: Path, label: str, record: Record, origin: Provenance) -> dict[str, str]:
    """Who a revision is, for the head of the page."""
    whisper = {key.removeprefix("whisper."): value for key, value in origin.params.items()}
    commit = record.revision.commit[:12]
    if not commit:
        try:
            commit = run_git(root, "rev-parse", "--short=12", "HEAD").decode().strip()
            commit += " with uncommitted changes" if run_git(root, "status", "--porcelain").strip() else ""
        except UserError:
            commit = "never committed"
    base = whisper.get("base", "")
    return {
        "label": label,
        "name": record.revision.name,
        "commit": commit,
        "base": "a new Whisper" if base == "scratch" else str(base),
        "corpus": corpus_of(origin.params),
        "language": str(whisper.get("language", "")),
    }


def corpus_of(params: dict[str, Any]) -> str:
    return corpus_name(download_section(params))


def download_section(params: dict[str, Any]) -> dict[str, Any]:
    """The section ``download`` of parameters by dotted key."""
    section: dict[str, Any] = {}
    for key, value in params.items():
        *parents, last = key.split(".")
        if parents[:1] == ["download"]:
            place = section
            for parent in parents[1:]:
                place = place.setdefault(parent, {})
            place[last] = value
    return section


def used_params(params: dict[str, Any]) -> dict[str, Any]:
    """Without the sections of corpora that were not asked for."""
    section = download_section(params)
    corpora, probes = (corpus_sources(section, kind) for kind in ("corpora", "probes"))
    used = {source["corpus"] for source in (*corpora.values(), *probes.values())}
    used |= set() if corpora else {section.get("corpus")}
    others = {name for name, value in section.items() if isinstance(value, dict)} - {"corpora", "probes", "drop", *used}
    if not section.get("corpus"):
        return params  # of a version that has none
    return {
        key: value for key, value in params.items() if not key.startswith(tuple(f"download.{name}." for name in others))
    }


def abstract(records: Sequence[Record], labels: list[str]) -> list[str]:
    """What was trained on what, and what came of it: a paragraph a revision."""
    paragraphs = []
    for label, record in zip(labels, records, strict=True):
        after, before = record.numbers("evaluate/tuned"), record.numbers("evaluate/pretrained")
        end, clips = record.numbers("train"), record.numbers("featurize/train")
        said = []
        if after:
            kind = "untrained" if before.get("untrained") else "pretrained"
            base = f"; the {kind} model it began as, {before['wer']:.1f} %" if before else ""
            said.append(
                f"On {after['clips']:,} test clips of {after['words']:,} words the tuned model has a word error rate "
                f"of {after['wer']:.1f} % (95 % interval {interval_text(after, 'wer')}){base}."
            )
        if {"best_step", "steps"} <= end.keys() and clips:
            which = (
                f"its weights, {end['weights']}," if "weights" in end else f"the weights of step {end['best_step']:,}"
            )
            said.append(
                f"It was trained on {clips['clips']:,} clips, {clips['seconds'] / 60:,.0f} min of speech, in "
                f"{end['steps']:,} steps; {which} have the lowest validation WER, {end['validation_wer']:.1f} %."
            )
        if said:
            paragraphs.append(" ".join([f"{label}:"] * (len(records) > 1) + said))
    return paragraphs


def verdict_texts(result: "Result") -> list[str]:
    """How B differs from A, and how sure that is."""
    from tools.compare.tables import HOLDS_ZERO, few_speakers, holds_zero, interval_texts, p_text, verdict

    (other,) = result.comparisons
    texts = []
    for name, change in (("WER", other.wer), ("CER", other.cer)):
        how = click.unstyle(verdict(change))
        head = {"equal": "the same", "not significant": "not significantly different"}.get(how, f"significantly {how}")
        about = f"95 % interval {' and '.join(interval_texts(change))}; p {equals(p_text(change.p))}"
        texts.append(f"B’s {name} is {head}: {change.points:+.2f} points ({about}).")
    texts.append(f"B is better on {other.better:,} clips, worse on {other.worse:,}, and as good on {other.equal:,}.")
    cautions = [HOLDS_ZERO] * holds_zero(other) + [few_speakers(result)]
    return texts + [f"{caution[0].upper()}{caution[1:]}." for caution in cautions if caution]


def equals(p: str) -> str:
    return f"< {p[1:]}" if p.startswith("<") else f"= {p}"


def score_table(records: Sequence[Record], labels: list[str]) -> dict[str, Any]:
    """headings: (revision, model) of each column; rows: a score's name and (text, interval) of each."""
    columns, probed = [], []
    for label, record in zip(labels, records, strict=True):
        for model in MODELS:
            numbers = record.numbers(f"evaluate/{model}")
            kind = "untrained" if numbers.get("untrained") else model
            columns.append((label if len(records) > 1 else "", kind, numbers))
            probed.append((probe_scores(numbers), record.numbers("download").get("probes", {})))
    rows = []
    for name, key in ROWS.items():
        if any(key in numbers for _, _, numbers in columns):
            rows.append((name, [score_cell(numbers, key) for _, _, numbers in columns]))
    for name in dict.fromkeys(name for scores, _ in probed for name in scores):
        rows.append((f"WER, {name}", [probe_cell(name, *found) for found in probed]))
    return {"headings": [(label, kind) for label, kind, _ in columns], "rows": rows}


def score_cell(numbers: dict[str, Any], key: str) -> tuple[str, str]:
    if key not in numbers:
        return "–", ""
    return f"{numbers[key]:.1f}", interval_text(numbers, key)


def probe_cell(name: str, scores: dict[str, Any], counts: dict[str, Any]) -> tuple[str, str]:
    if name not in scores:
        return "–", ""
    return f"{scores[name]['wer']:.1f}", probe_note(scores[name], counts.get(name, {}).get("in_train", {}))


def score_rows(records: Sequence[Record], labels: list[str]) -> list[tuple[str, str, str, float, float, float]]:
    rows = []
    colours = ["var(--first)", "var(--second)"][-len(records) :]
    for label, record, colour in zip(labels, records, colours, strict=True):
        for model in MODELS:
            found = record.numbers(f"evaluate/{model}")
            if found:
                kind = "untrained" if found.get("untrained") else model
                name = f"{label}, {kind}" if len(records) > 1 else kind
                look = ("var(--before)", "circle-open") if model == "pretrained" else (colour, "circle")
                rows.append((name, *look, found["wer"], found["wer_low"], found["wer_high"]))
    return rows


def edit_texts(records: Sequence[Record], labels: list[str]) -> list[str]:
    texts = []
    for label, record in zip(labels, records, strict=True):
        if found := record.numbers("evaluate/tuned"):
            head = f"{label}, tuned" if len(records) > 1 else "The tuned model"
            texts.append(f"{head}: " + ", ".join(f"{kind} {found[kind]:,}" for kind in EDIT_COUNTS))
    return texts


def confusion_rows(record: Record) -> list[tuple[str, str]]:
    return [(row["confusion"], row["count"]) for row in record.rows(TABLE.format("tuned", "confusions"))]


def sentences_context(root: Path, clips: list[Spoken], heard: Heard | None) -> dict[str, Any]:
    """The sentences to show, and in which orders."""
    if heard is None:
        return {"clips": []}
    by_change = sorted(clips, key=lambda clip: (-abs(clip.change), -clip.errors, clip.clip))
    both = sorted(clips, key=lambda clip: (-abs(clip.change) - clip.errors, clip.clip))
    most = fitting(both)
    audio = raw_audio(root / RAW, most)
    two = len(heard.systems) > 1
    order = by_change if heard.result else clips
    kept = {clip.clip for clip in most}
    last = heard.labels[-1]
    views = [("errors", f"most errors{f' in {last}' if two else ''}")]
    if two:
        views = [("change", "most changed"), ("better", f"better in {last}"), ("worse", f"worse in {last}"), *views]
    return {
        "clips": [replace(clip, audio=audio.get(clip.clip, "")) for clip in order if clip.clip in kept],
        "total": len(clips),
        "labels": heard.labels if two else [""],
        "views": views,
        "view": "change" if heard.result else "errors",
        "heard": len(audio),
        "most_heard": MOST_HEARD,
        "raw": RAW,
        "at_once": AT_ONCE,
    }


def split_tables(records: Sequence[Record], labels: list[str]) -> list[tuple[str, list[list[str]]]]:
    """Clips, speakers and minutes of each split; once where both revisions have the same."""
    tables = []
    for label, record in zip(labels, records, strict=True):
        found = record.numbers("download")
        rows = []
        for split in SPLITS:
            features = record.numbers(f"featurize/{split}")
            if features:
                speakers = found.get(split, {}).get("speakers")
                count = f"{speakers:,}" if speakers is not None else "–"
                rows.append([split, f"{features['clips']:,}", count, f"{features['seconds'] / 60:,.1f}"])
        tables.append((label, rows))
    same = all(rows == tables[0][1] for _, rows in tables)
    return [("", tables[0][1])] if same else tables


def drop_counts(records: Sequence[Record]) -> list[tuple[str, str, str, list[int]]]:
    """(stage, split, reason, clips of each revision), where there are any."""
    counts = [{(s, split): reasons for s, split, reasons in dropped_counts(record)} for record in records]
    places = dict.fromkeys(place for found in counts for place in found)
    return [
        (*place, reason, [found.get(place, {}).get(reason, 0) for found in counts])
        for place in places
        for reason in sorted({reason for found in counts for reason in found.get(place, {})})
    ]


def difference_rows(origins: list[Provenance]) -> dict[str, list[tuple[str, str, str]]]:
    """What made the two revisions differently, by kind."""
    from tools.compare.differences import changes

    before, after = origins
    kinds = {
        "Parameters": changes(before.params, after.params),
        "Data": changes(before.data, after.data),
        "Code": changes(before.code, after.code),
    }
    return {
        kind: [(key, short(old, kind), short(new, kind)) for key, (old, new) in found.items()]
        for kind, found in kinds.items()
    }


def short(value: Any, kind: str) -> str:
    return "none" if value is None else str(value) if kind == "Parameters" else value[:7] or "none"


def value_rows(columns: list[dict[str, Any]]) -> list[tuple[str, list[str], bool]]:
    """(key, value of each revision, whether they differ), by key."""
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [show(column[key]) if key in column else "–" for column in columns]
        rows.append((key, values, len(set(values)) > 1))
    return rows


def show(value: Any) -> str:
    """A parameter as params.yaml writes it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def out_rows(locks: list[dict[str, Any]]) -> list[tuple[str, str, list[str], bool]]:
    """(path, stage, hash of each revision, whether they differ), in the order of the stages."""
    columns = [
        {out["path"]: (stage, digest(out)) for stage, entry in lock.items() for out in entry.get("outs", [])}
        for lock in locks
    ]
    rows = []
    for path in dict.fromkeys(path for column in columns for path in column):
        stage = next(column[path][0] for column in columns if path in column)
        hashes = [column[path][1] if path in column else "–" for column in columns]
        rows.append((path, stage, hashes, len(set(hashes)) > 1))
    return rows


def pinned_versions(record: Record) -> dict[str, str]:
    """The project's own version, and the pins of what it depends on."""
    project, pins = record.texts[PROJECT], record.texts[PINS]
    if not project:
        return {}
    about = tomllib.loads(project).get("project", {})
    found = {str(about.get("name", "project")): str(about.get("version", "–"))}
    found["python"] = str(about.get("requires-python", "–"))
    lines = [line.partition("==") for line in (pins or "").splitlines() if "==" in line and line[0] != "#"]
    versions = {name.strip().lower(): version.strip() for name, _, version in lines}
    for wanted in about.get("dependencies", []):
        name = wanted.split(">")[0].split("=")[0].strip()
        if name.lower() in versions:
            found[name] = versions[name.lower()]
    return found


def commands(root: Path, records: Sequence[Record], labels: list[str]) -> str:
    """How to have the same again, as lines for a shell."""
    lines = []
    for label, record in zip(labels, records, strict=True):
        name, commit = shlex.quote(record.revision.name), record.revision.commit
        lines += [f"# {label}"] if len(records) > 1 else []
        if not commit:
            lines.append(remark("git add -A && git commit", "so that others have what stands in the workspace"))
        elif is_experiment(root, record.revision):
            lines.append(remark(f"dvc exp apply {name}", f"another's comes with dvc exp pull origin {name}"))
        else:
            lines.append(f"git switch --detach {commit[:12]}")
        lines += [remark("make pull", "features and models, where a remote has them"), "make repro"]
    names = shlex.join(record.revision.name for record in records)
    lines += ["", f"python -m tools.report {names} --html report.html"]
    if len(records) > 1:
        lines.append(f"python -m tools.compare {names}")
    return "\n".join(lines)


def remark(command: str, text: str) -> str:
    return f"{command:<32}  # {text}"


def is_experiment(root: Path, revision: Revision) -> bool:
    try:
        return not commit_of(root, revision.name)
    except UserError:
        return True

"""A corpus as ``download`` left it, measured in the pool: what an audit judges."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stages.asr.clips import SPLITS, read_clips
from stages.asr.labels import LabelStyle
from stages.asr.model import SpeechModel
from stages.params import Params, load_params
from stages.runtime.errors import UserError
from stages.runtime.pool import parallel_map
from stages.runtime.progress import ProgressBar
from stages.versioning.pins import ARTIFACT, pinned_commits, pinned_folder, pinned_versions
from tools.audit.findings import AuditedClip, find_faults
from tools.audit.likelihood import Scoring, load_trained, score_texts
from tools.audit.overview import Audit
from tools.audit.sounds import Sound, measure_file


def audit_corpus(raw: Path, params: Path, model: str | None) -> Audit:
    """Measure and judge all clips below a folder; raises UserError where there are none, or the model is none."""
    values = load_params(params)
    judge = load_trained(find_model(model)) if model else None  # before minutes are spent
    clips = measure_clips(raw, values.compute.processes)
    if judge:
        clips = with_likelihoods(clips, judge, values)
    findings, notes = find_faults(clips)
    return Audit(raw, clips, findings, notes, model or "")


def find_model(name: str, root: Path = Path()) -> Path:
    """The folder of a model, or of a pin, tuned@v1.0.0; raises UserError where there is neither."""
    if not name.startswith(f"{ARTIFACT}@"):
        return Path(name)
    commits = pinned_commits(root)
    if name not in commits:
        raise UserError(f"{name} is not pinned here; pinned are {', '.join(commits) or 'none'}")
    (version,) = pinned_versions(root, [(name, commits[name])])
    return pinned_folder(root, version)


def measure_clips(raw: Path, processes: int | None) -> list[AuditedClip]:
    """The clips of all splits with what their audio tells, in their order."""
    listed = [(split, clip) for split in SPLITS for clip in read_clips(raw / split)]
    if not listed:
        raise UserError(f"{raw} has no clips: run the download stage")
    paths = [raw / split / "audio" / clip.audio for split, clip in listed]
    sounds = ProgressBar(parallel_map(measure_file, paths, processes), total=len(paths), unit="clip", desc="audio")
    return [AuditedClip(*one, path, sound) for one, path, sound in zip(listed, paths, sounds, strict=True)]


def with_likelihoods(clips: Sequence[AuditedClip], model: SpeechModel, values: Params) -> list[AuditedClip]:
    """The clips with what a model makes of their texts."""
    scoring = Scoring(
        LabelStyle(**values.train.text.model_dump()), values.compute.decode_batch_size, values.compute.processes
    )
    heard = [number for number, one in enumerate(clips) if isinstance(one.sound, Sound)]
    chosen = [clips[number] for number in heard]
    seconds = [one.sound.seconds for one in chosen if isinstance(one.sound, Sound)]
    found = score_texts(model, [one.path for one in chosen], [one.clip.text for one in chosen], seconds, scoring)
    likelihoods = dict(zip(heard, found, strict=True))
    return [replace(one, likelihood=likelihoods.get(number)) for number, one in enumerate(clips)]

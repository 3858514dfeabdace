"""How sure a sweep's winner is: against the next on the validation clips, and with other seeds."""

import contextlib
import fcntl
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
from optuna.trial import FrozenTrial

from stages.asr.decoding import decode
from stages.asr.device import best_device, quick_precision
from stages.asr.model import load_model
from stages.asr.scoring import clip_edits, word_errors
from stages.asr.shards import Shards
from stages.asr.significance import LEVEL, percentile_interval, resampled_sums, sign_flip_p
from stages.asr.text import normalise
from stages.params import load_params
from stages.runtime.files import link_or_copy
from stages.runtime.progress import ProgressBar, note
from stages.runtime.storage import is_remote
from stages.training.pruning import TrialSettings
from stages.versioning.revisions import Revision, tracked_folder
from tools.sweep.experiments import run_experiment, stale_results
from tools.sweep.study import COMMIT, NAME, Sweep
from tools.sweep.trials import ranking

TUNED, SEED = "models/tuned", "train.seed"
SAMPLES = 10_000  # of the bootstrap


@dataclass(frozen=True)
class Lead:
    """How much worse the next trial is than the best, in points of WER on the same validation clips.

    interval: 95 %, of clips drawn again in pairs; p: of the clips' differences with their signs flipped.
    """

    points: float
    interval: tuple[float, float]
    p: float


def winners_lead(root: Path, best: FrozenTrial, other: FrozenTrial) -> Lead:
    """Decode validation with both models, and compare clip by clip."""
    errors = [validation_errors(root, trial) for trial in (best, other)]
    (edits, words), (others, _) = errors
    values = np.array([edits, others, words]).T
    sums = resampled_sums(values, SAMPLES, seed=1)
    points = 100 * (sums[:, 1] - sums[:, 0]) / sums[:, 2]
    return Lead(
        100 * float(others.sum() - edits.sum()) / float(words.sum()),
        percentile_interval(points),
        sign_flip_p(others - edits),
    )


def validation_errors(root: Path, trial: FrozenTrial) -> tuple[np.ndarray, np.ndarray]:
    """Word edits and reference words, (n_clips,) int each, of a trial's model, which DVC's cache has."""
    from dvc.repo import Repo

    params = load_params(root / "params.yaml")
    place = params.features.validation
    shards = Shards(place if is_remote(place) else root / place)
    with Repo(str(root)) as repo, tempfile.TemporaryDirectory() as folder:
        for name, path in tracked_folder(
            repo, Revision(trial.user_attrs[NAME], trial.user_attrs[COMMIT]), TUNED
        ).items():
            link_or_copy(path, Path(folder, name))
        model = load_model(Path(folder), best_device())
        size = params.compute.decode_batch_size
        with quick_precision(model.whisper.device):
            heard = decode(
                model, shards, size, lambda batches, n: ProgressBar(batches, total=n, unit="batch", desc="decode")
            )
    pairs = [(normalise(entry.text), normalise(text)) for entry, text in zip(shards.entries, heard, strict=True)]
    references, hypotheses = map(list, zip(*(pair for pair in pairs if pair[0]), strict=True))
    errors = word_errors(references, hypotheses)
    return clip_edits(errors), np.array(errors["words"])


def certainty(root: Path, sweep: Sweep) -> str:
    """How sure the winner is, in a line."""
    ranked = ranking(sweep)
    if len(ranked) < 2:
        return "Only one trial ran to its end: there is nothing to compare it with."
    best, other = ranked[:2]
    lead = winners_lead(root, best, other)
    low, high = lead.interval
    chance = "more than chance" if lead.p < LEVEL else "which may be chance"
    return (
        f"The next, {other.user_attrs[NAME]}, is {lead.points:+.2f} points of WER worse "
        f"({low:+.2f} to {high:+.2f} over validation clips drawn again; p {lead.p:.2g}): {chance}. "
        f"The winner was chosen on these clips, so its own WER flatters it; one seed each: --confirm 3 runs more."
    )


def confirm(root: Path, sweep: Sweep, seeds: int) -> str:
    """Run the best and the next again with other seeds; the mean, spread and p by seed, in lines."""
    ranked = ranking(sweep)[:2]
    first = load_params(sweep.params).train.seed
    chosen = [first + number for number in range(1, seeds + 1)]  # not the one that they were chosen with
    rates = []
    for trial in ranked:
        rates.append([rerun(root, sweep, trial, seed) for seed in chosen])
    lines = []
    for trial, found in zip(ranked, rates, strict=True):
        spread = f", spread (s.d.) {stdev(found):.2f}" if len(found) > 1 else ""
        listed = ", ".join(f"{rate:.2f}" for rate in found)
        lines.append(f"{trial.user_attrs[NAME]}: mean {fmean(found):.2f} %{spread} ({listed})")
    if len(rates) == 2:
        hundredths = np.array([round(100 * (other - best)) for best, other in zip(*rates, strict=True)])
        p, least = sign_flip_p(hundredths), 2 / 2**seeds
        lines.append(
            f"By seed the next is {hundredths.mean() / 100:+.2f} points worse, p {p:.2g} "
            f"(signs flipped; {seeds} seeds cannot give less than {min(1.0, least):.2g})"
        )
    return "\n".join(lines)


def rerun(root: Path, sweep: Sweep, trial: FrozenTrial, seed: int) -> float:
    """The validation WER of a trial with another seed, run to its end; an experiment that is there is taken."""
    name = f"{trial.user_attrs[NAME]}-seed{seed}"
    note(f"{name} …")
    with alone(sweep.folder / f"{name}.lock") as lock:
        settings = TrialSettings(sweep.storage, sweep.name, None, None, stale_results(root))
        values = sweep.plan.overrides | trial.params | {SEED: seed}
        return run_experiment(root, name, values, settings, sweep.folder / f"{name}.log", lock).wer


@contextlib.contextmanager
def alone(path: Path) -> Iterator[int]:
    """Hold a lock, waiting for whoever has it; gives its descriptor."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()

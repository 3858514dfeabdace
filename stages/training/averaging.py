"""Weights that no step had: the mean of the best evaluations', and the tuned ones drawn back to the base's.

Averaging the points that one training came by: Izmailov et al. 2018, "Averaging Weights Leads to Wider Optima and
Better Generalization"; of those best in validation, as in ESPnet. Interpolation with the base: Wortsman et al. 2022,
"Robust fine-tuning of zero-shot models" (WiSE-FT). Each is tried on validation, and taken only where it is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from stages.runtime.progress import ProgressBar

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Evaluation:
    """A validation while training: its step, the WER in percent, and the weights that it judged."""

    step: int
    wer: float
    weights: Weights


class BestEvaluations:
    """The evaluations with the lowest WER so far, at most ``keep`` and the best first; of equal ones the earliest."""

    def __init__(self, keep: int):
        self.keep = keep
        self.entries: list[Evaluation] = []

    @property
    def step(self) -> int:
        """Of the best one; 0 where there is none yet."""
        return self.entries[0].step if self.entries else 0

    def add(self, step: int, wer: float, weights: Callable[[], Weights]) -> None:
        """Take an evaluation in where it is among the best; only then are its weights copied."""
        if len(self.entries) < self.keep or wer < self.entries[-1].wer:
            found = [*self.entries, Evaluation(step, wer, weights())]
            self.entries = sorted(found, key=lambda entry: entry.wer)[: self.keep]


@dataclass(frozen=True)
class Candidate:
    """Weights that may become the tuned model. name: what they are, for a person; wer: on validation, in percent."""

    name: str
    weights: Weights
    wer: float


def choose_weights(
    best: Sequence[Evaluation], shares: Sequence[float], base: Callable[[], Weights], judge: Callable[[Weights], float]
) -> tuple[Candidate, dict[str, float]]:
    """The candidate with the lowest WER, the simplest of equal ones, and the WER in percent of each by name.

    best: evaluations, the best first, whose mean is tried where there are several. shares: of the better of those two,
    the rest the base's, each tried. judge: the validation WER of weights.
    """
    chosen = Candidate(f"step {best[0].step}", best[0].weights, best[0].wer)
    wers = {chosen.name: chosen.wer}
    total = (len(best) > 1) + len(shares)
    with ProgressBar(total=total, unit="candidate", desc="choose weights", disable=not total) as bar:

        def judged(name: str, weights: Weights) -> Candidate:
            wers[name] = judge(weights)
            bar.update()
            return Candidate(name, weights, wers[name])

        if len(best) > 1:
            steps = ", ".join(str(step) for step in sorted(entry.step for entry in best))
            chosen = better(chosen, judged(f"mean of steps {steps}", mean_weights([one.weights for one in best])))
        tuned, rest = chosen, base() if shares else {}
        for share in shares:
            mixed = interpolate_weights(rest, tuned.weights, share)
            chosen = better(chosen, judged(f"{share:g} of {tuned.name}, the rest of the base", mixed))
    return chosen, wers


def better(chosen: Candidate, other: Candidate) -> Candidate:
    return other if other.wer < chosen.wer else chosen


def mean_weights(states: Sequence[Weights]) -> Weights:
    """The mean of each tensor, summed in float64 and rounded once to its own dtype."""
    mean = {}
    for name, first in states[0].items():
        total = torch.zeros_like(first, dtype=torch.float64)
        for state in states:
            total += state[name]
        mean[name] = (total / len(states)).to(first.dtype)
    return mean


def interpolate_weights(base: Weights, tuned: Weights, share: float) -> Weights:
    """``share`` of the tuned weights and the rest of the base's, in float64, rounded once; 0 is the base."""
    return {
        name: (share * value.double() + (1 - share) * base[name].double()).to(value.dtype)
        for name, value in tuned.items()
    }

"""Weights that no step had: what they are, and when they are taken."""

import numpy as np
import pytest
import torch

from stages.training.averaging import (
    BestEvaluations,
    Evaluation,
    choose_weights,
    interpolate_weights,
    mean_weights,
)


def weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 5, generator=generator) for name in ("a", "b")}


def level(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((2,), value)}


@pytest.mark.parametrize("n_states", [1, 2, 3, 7])
def test_the_mean_is_numpys(n_states):
    states = [weights(seed) for seed in range(n_states)]
    kept = [weights(seed) for seed in range(n_states)]
    found = mean_weights(states)
    for name in ("a", "b"):
        mean = np.mean([state[name].numpy() for state in states], axis=0, dtype=np.float64).astype(np.float32)
        assert np.array_equal(found[name].numpy(), mean) and found[name].dtype == torch.float32
        assert all(torch.equal(state[name], before[name]) for state, before in zip(states, kept, strict=True))


def test_interpolation_runs_from_the_base_to_the_tuned():
    base, tuned = weights(1), weights(2)
    for share, other in ((0, base), (1, tuned)):
        assert all(torch.equal(value, other[name]) for name, value in interpolate_weights(base, tuned, share).items())
    halfway = interpolate_weights(base, tuned, 0.5)
    assert all(torch.equal(halfway[name], mean_weights([base, tuned])[name]) for name in base)


def test_the_best_evaluations_are_kept_of_equal_ones_the_earliest():
    best, copied = BestEvaluations(2), []
    for step, wer in ((1, 50.0), (2, 40.0), (3, 45.0), (4, 40.0), (5, 40.0), (6, 60.0)):
        best.add(step, wer, lambda step=step: copied.append(step) or level(step))
    assert [(entry.step, entry.wer, entry.weights["a"][0].item()) for entry in best.entries] == [(2, 40, 2), (4, 40, 4)]
    assert best.step == 2
    assert copied == [1, 2, 3, 4]  # the others cost nothing


@pytest.mark.parametrize(
    ("optimum", "shares", "name"),
    [
        (4.0, [0.5], "step 20"),
        (3.0, [0.5], "mean of steps 10, 20"),
        (1.5, [0.25, 0.5], "0.5 of mean of steps 10, 20, the rest of the base"),
        (0.0, [0.0, 0.5], "0 of mean of steps 10, 20, the rest of the base"),
    ],
)
def test_the_lowest_validation_wer_decides(optimum, shares, name):
    """Weights of 4 and 2, a base of 0, and a WER that grows with the distance from the optimum."""

    def judge(found: dict[str, torch.Tensor]) -> float:
        return abs(found["a"][0].item() - optimum)

    best = [Evaluation(20, judge(level(4)), level(4)), Evaluation(10, judge(level(2)) + 9, level(2))]
    chosen, wers = choose_weights(best, shares, lambda: level(0), judge)
    assert chosen.name == name and chosen.wer == judge(chosen.weights) == min(wers.values())
    assert len(wers) == 2 + len(shares)


def test_the_simplest_of_equal_ones_is_taken_and_nothing_is_tried_where_all_is_off():
    best = [Evaluation(20, 5.0, level(4)), Evaluation(10, 5.0, level(2))]
    assert choose_weights(best, [0.5], lambda: level(0), lambda _: 5.0)[0].name == "step 20"
    chosen, wers = choose_weights(best[:1], [], pytest.fail, pytest.fail)
    assert chosen.weights is best[0].weights and wers == {"step 20": 5.0}

"""Muon: steps of one length in every direction of a weight matrix, where AdamW's are of one length in every value.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), its steps scaled to the root mean
square of AdamW's, so that learning rates are alike (Liu et al., "Muon is Scalable for LLM Training", 2025). torch's own
leaves all but matrices to a second optimizer, and computes each matrix by itself in bfloat16, in which few processors
are quick; here matrices of one shape go together, in float32.
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

# Rounds a x + b x^3 + c x^5 that take singular values from 0.001 to 1 nearest to 1, each the best after those before it
# (Amsel et al., "The Polar Express", 2025). Each lets values be 1 % larger than it should, for rounding.
ROOM = 1.01
ROUNDS = [
    (a / ROOM, b / ROOM**3, c / ROOM**5)
    for a, b, c in (
        (8.2872, -23.596, 17.300),
        (4.1071, -2.9478, 0.54484),
        (3.9487, -2.9089, 0.55182),
        (3.3184, -2.4885, 0.51005),
        (2.3007, -1.6689, 0.41881),
    )
]
ADAMW_RMS = 0.2  # of AdamW's usual updates, in learning rates (Liu et al.)
EPSILON = 1e-8
AT_ONCE = 2**24  # weights that are made orthogonal together, of which there are then eight copies


class Muon(torch.optim.Optimizer):
    """Muon for the groups that say ``matrices``, AdamW for all others.

    momentum: of Muon, Nesterov's. betas: of AdamW. Weight decay is decoupled in both.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "matrices": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # whoever trains computes the loss before
        """One update by the gradients that are there."""
        for group in self.param_groups:
            weights = [each for each in group["params"] if each.grad is not None]
            for each in weights:
                each.mul_(1 - group["lr"] * group["weight_decay"])
            if group["matrices"]:
                self.move_matrices(weights, group)
            else:
                self.move_others(weights, group)

    def move_matrices(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Muon's step."""
        alike = defaultdict(list)
        for each in weights:
            alike[each.shape].append(each)
        for shape, matrices in alike.items():
            most = max(1, AT_ONCE // shape.numel())
            for start in range(0, len(matrices), most):
                self.move_alike(matrices[start : start + most], group)

    def move_alike(self, matrices: list[torch.Tensor], group: dict[str, Any]) -> None:
        """The step of matrices of one shape."""
        wanted = []
        for each in matrices:
            assert each.grad is not None
            mean = self.state[each].setdefault("mean", torch.zeros_like(each))
            mean.lerp_(each.grad, 1 - group["momentum"])
            wanted.append(each.grad.lerp(mean, group["momentum"]))
        length = group["lr"] * ADAMW_RMS * math.sqrt(max(matrices[0].shape))
        for each, update in zip(matrices, orthogonalised(torch.stack(wanted)), strict=True):
            each.add_(update, alpha=-length)

    def move_others(self, weights: list[torch.Tensor], group: dict[str, Any]) -> None:
        """AdamW's step (Loshchilov and Hutter 2019)."""
        first, second = group["betas"]
        for each in weights:
            assert each.grad is not None
            state = self.state[each]
            if not state:
                state |= {"step": 0, "mean": torch.zeros_like(each), "square": torch.zeros_like(each)}
            state["step"] += 1
            state["mean"].lerp_(each.grad, 1 - first)
            state["square"].mul_(second).addcmul_(each.grad, each.grad, value=1 - second)
            scale = (state["square"] / (1 - second ** state["step"])).sqrt_().add_(EPSILON)
            each.addcdiv_(state["mean"], scale, value=-group["lr"] / (1 - first ** state["step"]))


def orthogonalised(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, columns) float: directions kept, singular values 0.8 to 1.2 where they are above 0.1 % of the norm."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (ROOM * x.norm(dim=(1, 2), keepdim=True) + EPSILON)
    for a, b, c in ROUNDS:
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    result: torch.Tensor = x.mT if tall else x
    return result


def hidden_matrices(whisper: nn.Module) -> list[torch.Tensor]:
    """The weights that are matrices and neither embeddings nor what projects to tokens: of the layers' projections."""
    layers = [module for name in ("encoder", "decoder") for module in getattr(whisper.model, name).layers]
    linear = [part for layer in layers for part in layer.modules() if isinstance(part, nn.Linear)]
    return [weights for part in linear for weights in [part.weight] if weights.requires_grad]

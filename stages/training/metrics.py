"""What people compare of a training, and its file while the run is under way."""

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.runtime.files import write_json
from stages.training.averaging import BestEvaluations


def compared(validation_wer: float, best_step: int) -> dict[str, float]:
    """What people compare of a run: the WER of its result, and the step of its best evaluation."""
    return {"validation_wer": round(validation_wer, 2), "best_step": best_step}


class RunningMetrics(TrainerCallback):
    """What people compare, written as soon as it is known, for `dvc exp show` to show of a run that is under way."""

    def __init__(self, best: BestEvaluations, path: Path):
        self.best, self.path = best, path

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.best.entries:  # those of the checkpoint that this start goes on from
            write_json(self.path, compared(self.best.entries[0].wer, self.best.step))

    on_evaluate = on_train_begin

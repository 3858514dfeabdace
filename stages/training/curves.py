"""How a training goes: its curves, a row at a time so that `dvc plots` draws a run that is under way, and a bar."""

import math
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from stages.runtime.errors import UserError
from stages.runtime.files import write_table
from stages.runtime.progress import ProgressBar
from stages.training.parent import Parent


class Curves(TrainerCallback):
    """training.tsv and validation.tsv of a run, in ``folder``; no row is written once the parent is gone."""

    bar: ProgressBar

    def __init__(self, folder: Path, parent: Parent):
        self.parent = parent
        self.training, self.validation = folder / "training.tsv", folder / "validation.tsv"
        write_table(self.training, ["step", "loss", "learning_rate"], [])
        write_table(self.validation, ["step", "loss", "wer"], [])
        self.shown: dict[str, str] = {}

    def copy_to(self, folder: Path) -> None:
        """Keep the curves so far beside a checkpoint."""
        for path in (self.training, self.validation):
            shutil.copyfile(path, folder / path.name)

    def restore(self, folder: Path) -> None:
        """Take up the curves of a checkpoint; the rows after it will be drawn again."""
        for path in (self.training, self.validation):
            shutil.copyfile(folder / path.name, path)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar = ProgressBar(total=state.max_steps, initial=state.global_step, unit="step", desc="train")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.parent.check()
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.bar.close()

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        """A row of training.tsv. Raises UserError where the loss has left the finite numbers."""
        logs = given["logs"]
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(f"the loss is {logs['loss']} at step {state.global_step}: lower train.learning_rate")
        self.write_row(self.training, state.global_step, logs["loss"], logs["learning_rate"])
        self.show(loss=f"{logs['loss']:.3f}")

    def add_validation(self, step: int, loss: float, wer: float) -> None:
        """A row of validation.tsv: nats a label token, and percent."""
        self.write_row(self.validation, step, loss, wer)
        self.show(validation_wer=f"{wer:.1f} %")

    def write_row(self, path: Path, step: int, *values: float) -> None:
        self.parent.check()
        with path.open("a") as rows:
            rows.write("\t".join([str(step), *(f"{value:.6g}" for value in values)]) + "\n")

    def show(self, **values: str) -> None:
        """Put the latest values beside the bar."""
        self.shown |= values
        self.bar.set_postfix(self.shown, refresh=False)

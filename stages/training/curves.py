"""How a training goes: its curves, a row at a time so that `dvc plots` draws a run that is under way, and a line."""

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

    bar: "StepBar"

    def __init__(self, folder: Path, parent: Parent):
        self.parent = parent
        self.training, self.validation = folder / "training.tsv", folder / "validation.tsv"
        write_table(self.training, ["step", "loss", "learning_rate"], [])
        write_table(self.validation, ["step", "loss", "wer"], [])

    def copy_to(self, folder: Path) -> None:
        """Keep the curves so far beside a checkpoint."""
        for path in (self.training, self.validation):
            shutil.copyfile(path, folder / path.name)

    def restore(self, folder: Path) -> None:
        """Take up the curves of a checkpoint; the rows after it will be drawn again."""
        for path in (self.training, self.validation):
            shutil.copyfile(folder / path.name, path)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **has: Any) -> None:
        loader = has["train_dataloader"]
        clips = len(loader.dataset) * args.gradient_accumulation_steps / len(loader)
        self.bar = StepBar(clips, total=state.max_steps, initial=state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.parent.check()
        self.bar.update(state.global_step - self.bar.n)
        if control.should_evaluate:
            self.bar.show(phase="validate")

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
        self.bar.show(loss=logs["loss"])

    def add_validation(self, step: int, loss: float, wer: float) -> None:
        """A row of validation.tsv: nats a label token, and percent."""
        self.write_row(self.validation, step, loss, wer)
        self.bar.show(phase="train", wer=wer)

    def write_row(self, path: Path, step: int, *values: float) -> None:
        self.parent.check()
        with path.open("a") as rows:
            rows.write("\t".join([str(step), *(f"{value:.6g}" for value in values)]) + "\n")


class StepBar(ProgressBar):
    """Step, loss, validation WER, clips a second and time left, in a line of at most 80 columns.

    The speed is that since the start, validation included, so that the time left is what people wait.
    """

    def __init__(self, clips: float, **options: Any):
        self.clips, self.phase, self.loss, self.wer = clips, "train", math.nan, math.nan
        super().__init__(unit="step", smoothing=0, bar_format="{line}", **options)

    def show(self, **values: Any) -> None:
        """Put the latest values into the line: phase, loss in nats a label token, wer in percent on validation."""
        vars(self).update(values)
        if "phase" in values:  # a validation may take minutes
            self.refresh()

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's own, and the line, cut where a terminal would wrap it."""
        values = dict(super().format_dict)
        line = self.line(values["n"], values["initial"], values["total"], values["elapsed"])
        return values | {"line": line[: values["ncols"]]}

    def line(self, n: int, initial: int, total: int, elapsed: float) -> str:
        parts = [f"{self.phase:<8} {n}/{total} ({n / total:.0%})"]
        if not math.isnan(self.loss):
            parts.append(f"loss {self.loss:.3f}")
        if not math.isnan(self.wer):
            parts.append(f"WER {self.wer:.1f} %")
        if n > initial:
            speed = (n - initial) / elapsed
            left = self.format_interval((total - n) / speed)
            parts += [f"{speed * self.clips:.3g} clips/s", f"{left} left"]
        return "  ".join(parts)

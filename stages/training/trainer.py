"""transformers' trainer on batches of like length, with our validation and checkpoints that are whole."""

import contextlib
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stages.asr.batches import IGNORED, ClipDataset, LengthBucketSampler, collate
from stages.asr.decoding import decode
from stages.asr.model import SpeechModel, best_device
from stages.asr.scoring import wer
from stages.params import Compute, Train
from stages.runtime.errors import UserError
from stages.runtime.files import write_json, write_table
from stages.runtime.progress import ProgressBar
from stages.training import run as runs
from stages.training.mirror import Mirror
from stages.training.parent import Parent

STATE, BEST, WEIGHTS = "state.json", "best.safetensors", "model.safetensors"  # files of a checkpoint


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Start:
    """A checkpoint to go on from. adopted: what differs, where it is another run's."""

    folder: Path
    adopted: dict | None = None

    @cached_property
    def state(self) -> dict:
        """step, best_wer, best_step, finished, adopted."""
        return json.loads((self.folder / STATE).read_text(encoding="utf-8"))


def regularisation(settings: Train) -> dict:
    """The values of Whisper's config that training alone uses."""
    augment = settings.spec_augment
    return {
        "dropout": settings.dropout,
        "attention_dropout": settings.attention_dropout,
        "activation_dropout": settings.activation_dropout,
        "encoder_layerdrop": settings.layerdrop,
        "decoder_layerdrop": settings.layerdrop,
        "apply_spec_augment": augment.time_prob > 0 or augment.feature_prob > 0,
        "mask_time_prob": augment.time_prob,
        "mask_time_length": augment.time_length,
        "mask_feature_prob": augment.feature_prob,
        "mask_feature_length": augment.feature_length,
    }


class SpeechTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer on batches of like length, with validation by the decoder that evaluate uses.

    transformers' ``predict_with_generate`` pads every clip to the full window; this decodes at the trained context.
    Its checkpoints are complete or absent, hold the best weights and the curves so far, and lie in ``folder``, the
    ``keep`` newest of them.
    """

    def __init__(
        self,
        speech: SpeechModel,
        clips: ClipDataset,
        validation: ClipDataset,
        settings: Train,
        compute: Compute,
        keep: int,
        folder: Path,
        mirror: Mirror | None,
        curves: Path,
    ):
        self.speech, self.validation, self.settings, self.compute = speech, validation, settings, compute
        self.folder, self.keep, self.mirror, self.parent = folder, keep, mirror, Parent()
        self.curves = Curves(curves, self.parent)
        self.best_wer, self.best_step, self.best_weights, self.adopted = math.inf, 0, {}, None
        super().__init__(
            model=speech.whisper,
            args=training_arguments(settings, compute, folder),
            train_dataset=clips,
            eval_dataset=validation,
            data_collator=collate,
            callbacks=[self.curves],
        )
        self.remove_callback(PrinterCallback)

    def run(self, start: Start | None) -> None:
        """Train to the end, from a checkpoint where there is one."""
        # Else several threads add up the gradient of the position embeddings in whatever order they come.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False
        if start is None:
            self.train()
            return
        state, best = start.state, start.folder / BEST
        self.adopted = start.adopted or state["adopted"]
        if state["best_wer"] is not None:
            self.best_wer, self.best_step = state["best_wer"], state["best_step"]
            self.best_weights = load_file(best if best.exists() else start.folder / WEIGHTS)
        self.curves.restore(start.folder)
        say(f"resuming run {runs.short(start.folder.parent.name)} at step {state['step']} of {self.planned_steps()}")
        if state["finished"]:
            self.state.global_step = state["step"]
        else:
            self.train(resume_from_checkpoint=str(start.folder))

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        batches = -(-len(self.train_dataset) // self.settings.batch_size)
        an_epoch = -(-batches // self.settings.gradient_accumulation)
        return self.settings.max_steps or math.ceil(self.settings.epochs * an_epoch)

    def get_train_dataloader(self) -> DataLoader:
        sampler = LengthBucketSampler(
            self.train_dataset.frames(),
            self.settings.batch_size,
            self.speech.window,
            1.0 if self.settings.context == "full" else self.settings.full_context_share,
            self.settings.seed,
        )
        loader = DataLoader(
            self.train_dataset, batch_sampler=sampler, collate_fn=collate, num_workers=self.compute.loader_workers
        )
        return self.accelerator.prepare(loader)

    def evaluate(self, *_, **__) -> dict:
        """Loss a token and WER on validation; keeps the weights of the lowest WER, and stops when patience is spent."""
        self.model.eval()
        with torch.inference_mode(), self.compute_loss_context_manager():
            loss = validation_loss(self.speech, self.validation, self.compute.decode_batch_size)
            heard = decode(self.speech, self.validation.shards, self.compute.decode_batch_size)
        rate = wer([entry.text for entry in self.validation.shards.entries], heard)
        if rate < self.best_wer:
            self.best_wer, self.best_step = rate, self.state.global_step
            self.best_weights = self.weights()
        self.curves.validated(self.state.global_step, loss, rate)
        metrics = {"eval_loss": loss, "eval_wer": rate}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        patience = self.settings.patience
        if patience and self.state.global_step - self.best_step >= patience * self.settings.eval_every:
            self.control.should_training_stop = self.control.should_save = True
        return metrics

    def weights(self) -> dict[str, torch.Tensor]:
        """A copy of the weights as ``save_pretrained`` names them, without the projection tied to the embedding."""
        state = self.model.state_dict()
        return {name: value.detach().cpu().clone() for name, value in state.items() if name != "proj_out.weight"}

    def current_state(self) -> dict:
        return {
            "step": self.state.global_step,
            "best_wer": self.best_wer if self.best_weights else None,
            "best_step": self.best_step,
            "finished": self.control.should_training_stop or self.state.global_step >= self.planned_steps(),
            "adopted": self.adopted,
        }

    def _save_checkpoint(self, model: torch.nn.Module, trial: None) -> None:
        """Where transformers would write a checkpoint piece by piece, write a whole one."""
        saved = runs.save(self.folder, self.state.global_step, lambda partial: self.write_checkpoint(partial, model))
        runs.prune(self.folder, self.keep)
        if self.mirror:
            self.mirror.send(saved)

    def write_checkpoint(self, partial: Path, model: torch.nn.Module) -> None:
        """transformers' own files, the best weights, the curves, and what we know beside them."""
        self.partial = partial
        super()._save_checkpoint(model, None)
        theirs = partial / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        for path in theirs.iterdir():
            path.rename(partial / path.name)
        theirs.rmdir()
        self.curves.copy_to(partial)
        write_json(partial / STATE, self.current_state())
        if not self.best_weights or self.best_step == self.state.global_step:
            return  # the weights themselves are the best so far
        for before in runs.checkpoints(self.folder)[:1]:
            if json.loads((before / STATE).read_text(encoding="utf-8"))["best_step"] == self.best_step:
                same = before / BEST if (before / BEST).exists() else before / WEIGHTS
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(same, partial / BEST)
                    return
        save_file(self.best_weights, partial / BEST)

    def _get_output_dir(self, trial: None) -> str:
        return str(self.partial)


def training_arguments(settings: Train, compute: Compute, folder: Path) -> Seq2SeqTrainingArguments:
    """Our settings in transformers' words."""
    return Seq2SeqTrainingArguments(
        output_dir=str(folder),
        seed=settings.seed,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="constant_with_warmup" if settings.schedule == "constant" else settings.schedule,
        warmup_steps=settings.warmup_steps,
        max_steps=settings.max_steps or -1,
        num_train_epochs=settings.epochs or 0,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        activation_checkpointing=settings.gradient_checkpointing,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        dataloader_num_workers=compute.loader_workers,
        remove_unused_columns=False,
        use_cpu=best_device().type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )


@torch.inference_mode()
def validation_loss(speech: SpeechModel, clips: ClipDataset, batch_size: int) -> float:
    """Mean cross-entropy a label token over a split, in nats."""
    frames = clips.frames()
    order = sorted(range(len(clips)), key=frames.__getitem__)
    total, tokens = 0.0, 0
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        longest = min(frames[places[-1]], speech.window) if speech.context == "clip" else speech.window
        batch = collate([clips[place, longest] for place in places])
        count = int((batch["labels"] != IGNORED).sum())
        inputs = {name: value.to(speech.whisper.device) for name, value in batch.items()}
        total += count * speech.whisper(**inputs).loss.item()
        tokens += count
    return total / tokens


class Curves(TrainerCallback):
    """training.tsv and validation.tsv, a row at a time so that `dvc plots` draws a run that is under way, and a bar."""

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

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = ProgressBar(total=state.max_steps, initial=state.global_step, unit="step", desc="train")

    def on_step_end(self, args, state, control, **_) -> None:
        self.parent.check()
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **_) -> None:
        self.bar.close()

    def on_log(self, args, state, control, logs: dict, **_) -> None:
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(f"the loss is {logs['loss']} at step {state.global_step}: lower train.learning_rate")
        self.write(self.training, state.global_step, logs["loss"], logs["learning_rate"])
        self.show(loss=f"{logs['loss']:.3f}")

    def validated(self, step: int, loss: float, rate: float) -> None:
        self.write(self.validation, step, loss, rate)
        self.show(validation_wer=f"{rate:.1f} %")

    def write(self, path: Path, step: int, *values: float) -> None:
        self.parent.check()
        with path.open("a") as rows:
            rows.write("\t".join([str(step), *(f"{value:.6g}" for value in values)]) + "\n")

    def show(self, **values: str) -> None:
        self.shown |= values
        self.bar.set_postfix(self.shown, refresh=False)

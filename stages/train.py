"""Train and validation shards + models/pretrained -> models/tuned, and the curves of how it went."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

from stages.asr.batches import IGNORED, LengthBatches, Utterances, collate
from stages.asr.checkpoint import Checkpoint, best_device, check_fit, load_checkpoint, save_checkpoint
from stages.asr.clips import Drop, write_rows
from stages.asr.decoding import decode
from stages.asr.errors import UserError
from stages.asr.files import write_json
from stages.asr.scoring import wer
from stages.asr.shards import Shards
from stages.params import Checkpoints, Compute, Train, load_params

FOLDER = click.Path(path_type=Path)


@click.command()
@click.option("--params", type=FOLDER, required=True)
@click.option("--train", "train_shards", type=FOLDER, required=True)
@click.option("--validation", type=FOLDER, required=True)
@click.option("--pretrained", type=FOLDER, required=True, help="The model to start from.")
@click.option("--checkpoints", type=FOLDER, required=True, help="Scratch folder, no out.")
@click.option("--tuned", type=FOLDER, required=True, help="Folder for the best model.")
@click.option("--curves", type=FOLDER, required=True, help="Folder for training.tsv and validation.tsv.")
@click.option("--dropped", type=FOLDER, required=True, help="Table of what was left out.")
@click.option("--metrics", type=FOLDER, required=True)
def main(params: Path, **paths: Path) -> None:
    """Fine-tune the base model; keep the weights with the lowest validation WER."""
    settings = load_params(params, "train", "compute", "checkpoints")
    result = train(*settings, Paths(**paths))
    click.echo(f"validation WER {result['validation_wer']:.1f} % at step {result['best_step']} of {result['steps']}")


@dataclass(frozen=True)
class Paths:
    """What train reads and writes, as the options above."""

    train_shards: Path
    validation: Path
    pretrained: Path
    checkpoints: Path
    tuned: Path
    curves: Path
    dropped: Path
    metrics: Path


def train(settings: Train, compute: Compute, keep: Checkpoints, paths: Paths) -> dict:
    """Train, and write everything that ``paths`` names; returns what metrics holds.

    Raises UserError where the features do not fit the model, no clip is left, or the loss leaves the finite numbers.
    """
    checkpoint = load_checkpoint(paths.pretrained, best_device(), **regularisation(settings))
    checkpoint.context, checkpoint.untrained = settings.context, False
    checkpoint.model.generation_config.max_length = settings.generation_max_tokens
    shards = {folder: Shards(folder) for folder in (paths.train_shards, paths.validation)}
    for folder, split in shards.items():
        check_fit(checkpoint, split, folder)
    clips = {folder: Utterances(split, checkpoint, settings.max_label_tokens) for folder, split in shards.items()}
    drops = [Drop(folder.name, clip, "label too long") for folder, split in clips.items() for clip in split.dropped]
    write_rows(paths.dropped, Drop, drops)
    for folder, split in clips.items():
        if not len(split):
            raise UserError(f"no clip of {folder} is left: raise train.max_label_tokens ({paths.dropped} lists them)")
    trainer = SpeechTrainer(checkpoint, *clips.values(), settings, compute, keep, paths)
    trainer.run()
    return finish(trainer, len(drops), paths)


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


def finish(trainer: "SpeechTrainer", dropped: int, paths: Paths) -> dict:
    """Write the best weights and the metrics."""
    trainer.model.load_state_dict(trainer.best_weights)
    shutil.rmtree(paths.tuned, ignore_errors=True)
    save_checkpoint(trainer.checkpoint, paths.tuned)
    result = {
        "validation_wer": round(trainer.best_wer, 2),
        "best_step": trainer.best_step,
        "steps": trainer.state.global_step,
        "dropped": {"label too long": dropped} if dropped else {},
    }
    write_json(paths.metrics, result)
    shutil.rmtree(paths.checkpoints, ignore_errors=True)
    return result


class SpeechTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer on batches of like length, with validation by the decoder that evaluate uses.

    transformers' ``predict_with_generate`` pads every clip to the full window; this decodes at the trained context.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        clips: Utterances,
        validation: Utterances,
        settings: Train,
        compute: Compute,
        keep: Checkpoints,
        paths: Paths,
    ):
        self.checkpoint, self.validation, self.settings, self.compute = checkpoint, validation, settings, compute
        self.curves = Curves(paths.curves)
        self.best_wer, self.best_step, self.best_weights, self.evaluated = math.inf, 0, {}, -1
        super().__init__(
            model=checkpoint.model,
            args=training_arguments(settings, compute, keep, paths.checkpoints),
            train_dataset=clips,
            eval_dataset=validation,
            data_collator=collate,
            callbacks=[self.curves],
        )
        self.remove_callback(PrinterCallback)

    def run(self) -> None:
        """Train to the end, and judge the last weights too where no evaluation fell on them."""
        self.train()
        if self.evaluated != self.state.global_step:
            self.evaluate()

    def get_train_dataloader(self) -> DataLoader:
        sampler = LengthBatches(
            self.train_dataset.frames(),
            self.settings.batch_size,
            self.checkpoint.window,
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
            loss = validation_loss(self.checkpoint, self.validation, self.compute.decode_batch_size)
            heard = decode(self.checkpoint, self.validation.shards, self.compute.decode_batch_size)
        rate = wer([entry.text for entry in self.validation.shards.entries], heard)
        self.evaluated = self.state.global_step
        if rate < self.best_wer:
            self.best_wer, self.best_step = rate, self.state.global_step
            self.best_weights = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
        self.curves.validated(self.state.global_step, loss, rate)
        metrics = {"eval_loss": loss, "eval_wer": rate}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        patience = self.settings.patience
        if patience and self.state.global_step - self.best_step >= patience * self.settings.eval_every:
            self.control.should_training_stop = True
        return metrics


def training_arguments(settings: Train, compute: Compute, keep: Checkpoints, folder: Path) -> Seq2SeqTrainingArguments:
    """Our settings in transformers' words."""
    shutil.rmtree(folder, ignore_errors=True)
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
        save_total_limit=keep.keep,
        dataloader_num_workers=compute.loader_workers,
        remove_unused_columns=False,
        use_cpu=best_device().type == "cpu",
        report_to="none",
        disable_tqdm=True,
    )


@torch.inference_mode()
def validation_loss(checkpoint: Checkpoint, clips: Utterances, batch_size: int) -> float:
    """Mean cross-entropy a label token over a split, in nats."""
    frames = clips.frames()
    order = sorted(range(len(clips)), key=frames.__getitem__)
    total, tokens = 0.0, 0
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        longest = min(frames[places[-1]], checkpoint.window) if checkpoint.context == "clip" else checkpoint.window
        batch = collate([clips[place, longest] for place in places])
        count = int((batch["labels"] != IGNORED).sum())
        inputs = {name: value.to(checkpoint.model.device) for name, value in batch.items()}
        total += count * checkpoint.model(**inputs).loss.item()
        tokens += count
    return total / tokens


class Curves(TrainerCallback):
    """training.tsv and validation.tsv, a row at a time so that `dvc plots` draws a run that is under way, and a bar."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.training, self.validation = folder / "training.tsv", folder / "validation.tsv"
        self.training.write_text("step\tloss\tlearning_rate\n")
        self.validation.write_text("step\tloss\twer\n")
        self.shown: dict[str, str] = {}

    def on_train_begin(self, args, state, control, **_) -> None:
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", desc="train")

    def on_step_end(self, args, state, control, **_) -> None:
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
        with path.open("a") as rows:
            rows.write("\t".join([str(step), *(f"{value:.6g}" for value in values)]) + "\n")

    def show(self, **values: str) -> None:
        self.shown |= values
        self.bar.set_postfix(self.shown, refresh=False)

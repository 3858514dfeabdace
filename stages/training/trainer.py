"""transformers' trainer on batches of like length, with our validation and checkpoints that are whole."""

import contextlib
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from transformers import PrinterCallback, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback, set_seed
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from stages.asr.batches import IGNORED, BatchItem, ClipDataset, LengthBucketSampler, collate
from stages.asr.decoding import batch_by_length, decode_mels
from stages.asr.device import explain_out_of_memory
from stages.asr.model import SpeechModel
from stages.asr.scoring import wer
from stages.params import Compute, Train
from stages.runtime.errors import one_line
from stages.runtime.progress import note, warn
from stages.runtime.stops import Forking, leave_interrupts
from stages.training.adapters import adapter_weights, choose_trained, merge_adapters, remove_adapters
from stages.training.averaging import BestEvaluations, Candidate, Evaluation, Weights, choose_weights
from stages.training.checkpoints import CheckpointManager, TrainingState, best_name
from stages.training.ctc import HEAD, add_head, ctc_loss, remove_head
from stages.training.curves import Curves
from stages.training.muon import Muon, hidden_matrices
from stages.training.parent import Parent
from stages.training.pruning import read_pruning
from stages.training.ranks import Ranks, current_ranks
from stages.training.resume import Start
from stages.training.run import short_name
from stages.training.trial import largest_batches, make_batching, memory_remedy, optimizer_moments, random_state_kept

RANDOM_STATE = "rng_state.pth"  # transformers' name for it
PASSED_OVER = ("mps", "xpu")  # devices whose random generators transformers does not keep
GENERATOR = "accelerator"  # such a one in that file
GPU_WORKERS = 4  # of loader_workers: auto
SHARED = Path("/dev/shm")  # where they lay batches, each some 15 MB on full windows
SHARED_BYTES = 1 << 30  # a container may have 64 MB of it


class SpeechTrainer(Seq2SeqTrainer):
    """Seq2SeqTrainer on batches of like length, with validation by the decoder that evaluate uses.

    transformers' ``predict_with_generate`` pads every clip to the full window; this decodes at the trained context.
    Its checkpoints are complete or absent, hold the best weights and the curves so far, and are the manager's to keep.
    Of several ranks each has one of these, and rank 0's alone writes.
    """

    curves: Curves  # of rank 0

    def __init__(
        self,
        speech_model: SpeechModel,
        clips: ClipDataset,
        validation: ClipDataset,
        settings: Train,
        compute: Compute,
        checkpoints: CheckpointManager,
        curves: Path,
    ):
        self.speech_model, self.clips, self.validation = speech_model, clips, validation
        self.settings, self.compute = settings, compute
        self.ranks = current_ranks()
        self.checkpoints, self.partial = checkpoints, checkpoints.folder
        self.parent = Parent(launched=self.ranks.count > 1)
        self.pruning = read_pruning()
        callbacks: list[TrainerCallback] = []
        if self.ranks.leads:
            self.curves = Curves(curves, self.parent)
            callbacks = [self.curves, *([self.pruning] if self.pruning else [])]
        self.best = BestEvaluations(max(settings.average, 1))
        self.adopted: dict[str, Any] | None = None
        device = speech_model.whisper.device
        choose_trained(speech_model.whisper, settings)
        if settings.ctc_weight:
            add_head(speech_model, settings.seed)
        self.untried = device.type != "cpu"  # there memory gives way to the disk, and a trial would cost time
        super().__init__(
            model=speech_model.whisper,
            args=training_arguments(settings, compute, checkpoints.folder, device),
            train_dataset=clips,
            eval_dataset=validation,
            data_collator=collate,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        if not self.ranks.leads:
            set_seed(self.ranks.seed(settings.seed))

    def run(self, start: Start | None) -> None:
        """Train to the end, from a checkpoint where there is one; raises UserError where memory runs out."""
        # Else several threads add up the gradient of the position embeddings in whatever order they come. On a GPU a
        # mere warning would leave attention's gradient to chance (ATen's attention_backward.cu).
        torch.use_deterministic_algorithms(True, warn_only=self.args.device.type != "cuda")
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by a property
        if self.args.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32 from Ampere on, where precision leaves products in fp32
        with explain_out_of_memory(memory_remedy(self.settings)):
            self.train_from(start)

    def train_from(self, start: Start | None) -> None:
        """Train to the end from where ``start`` says."""
        if start is None:
            self.train()
            return
        checkpoint = start.checkpoint
        state = checkpoint.state
        self.adopted = start.adopted or state.adopted
        if self.ranks.leads:
            kept = [(step, rate, load_file(checkpoint.weights_of(step))) for step, rate in state.best]
            self.best.entries = [Evaluation(step, rate, tuned_weights(weights)) for step, rate, weights in kept]
            self.curves.restore(checkpoint.folder)
            note(f"resuming run {short_name(checkpoint.run)} at step {state.step} of {self.planned_steps()}")
        if self.pruning and state.pruned:
            self.pruning.pruned = True
        if state.finished or (self.pruning and state.pruned):
            self.state.global_step = state.step
        else:
            self.train(resume_from_checkpoint=str(checkpoint.folder))

    def planned_steps(self) -> int:
        """Optimizer steps of the whole run."""
        if self.settings.max_steps:
            return self.settings.max_steps
        an_epoch = -(-len(self.make_sampler()) // self.settings.gradient_accumulation)
        return math.ceil((self.settings.epochs or 0) * an_epoch)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """transformers' own, or Muon, whose other weights decay or not as transformers divides them."""
        if self.settings.optimizer != "muon" or self.optimizer is not None:
            return super().create_optimizer(model)
        matrices = hidden_matrices(self.speech_model.whisper)
        trained = [each for each in self.speech_model.whisper.named_parameters() if each[1].requires_grad]
        decaying, known = (
            set(self.get_decay_parameter_names(self.speech_model.whisper)),
            {id(each) for each in matrices},
        )
        others = [(name, each) for name, each in trained if id(each) not in known]
        groups = [
            {"params": matrices, "matrices": True, "weight_decay": self.settings.weight_decay},
            {"params": [each for name, each in others if name in decaying], "weight_decay": self.settings.weight_decay},
            {"params": [each for name, each in others if name not in decaying], "weight_decay": 0.0},
        ]
        self.optimizer = Muon(groups, self.settings.learning_rate, betas=(0.9, self.settings.adam_beta2))
        return self.optimizer

    def make_sampler(self) -> LengthBucketSampler:
        batching = make_batching(self.settings, self.speech_model.window, self.ranks)
        return LengthBucketSampler(self.clips, batching, self.settings.seed)

    def get_train_dataloader(self) -> DataLoader[Any]:
        sampler = self.make_sampler()
        workers = loader_workers(self.compute, self.args.device)
        forked = Forking() if workers and sys.platform == "linux" else None  # else each imports torch, every epoch
        pinned = self.args.device.type == "cuda"  # so that a batch is copied while the one before it is computed
        loader: DataLoader[Any] = self.accelerator.prepare(
            DataLoader(
                self.clips,
                batch_sampler=sampler,
                collate_fn=collate,
                num_workers=workers,
                pin_memory=pinned,
                worker_init_fn=leave_interrupts,
                multiprocessing_context=forked,
            )
        )
        return loader

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        if self.untried:
            self.untried = False
            self.try_largest_batch(model)
        if len(inputs["labels"]):
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:  # an epoch's last step may have no clip for a rank
            loss = torch.zeros((), device=self.args.device)
        if self.accelerator.sync_gradients:
            self.ranks.sum_gradients(model.parameters())
        return loss

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """An optimizer step's batches, and how many label tokens those of all ranks have together."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        assert isinstance(tokens, torch.Tensor)
        return batches, self.ranks.sum(tokens)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self.ranks.count > 1:  # of which each rank has its batches' part
            logs["loss"] = self.ranks.sum(torch.tensor(logs["loss"], dtype=torch.float64)).item()
        super().log(logs, start_time)

    def try_largest_batch(self, model: torch.nn.Module) -> None:
        """Have memory run out now if it ever will in training; changes neither weights nor random states.

        Where the device has no deterministic way to compute a step, says so, and has the run go on without.
        """
        refusal = None
        with random_state_kept(self.args.device):
            try:
                self.trial_step(model)
            except RuntimeError as error:
                if "deterministic" not in str(error):
                    raise
                refusal = one_line(error)
            if refusal:  # no earlier: the error holds on to the step's memory
                warn(f"another run may not give the same bytes: {refusal}")
                torch.use_deterministic_algorithms(True, warn_only=True)
                self.trial_step(model)

    def trial_step(self, model: torch.nn.Module) -> None:
        """The gradient of the largest batches, beside what the optimizer will hold, and all of it thrown away."""
        assert self.optimizer is not None
        moments = [] if self.optimizer.state else optimizer_moments(model, self.settings.optimizer)
        for batch in largest_batches(self.clips, self.settings, self.speech_model.window):
            super().training_step(model, batch, (batch["labels"] != IGNORED).sum().to(self.args.device))
        del moments
        model.zero_grad()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """A batch's part of its optimizer step's loss, the mean over all label tokens of the step's batches.

        With a ctc_weight above 0 it is that share of CTC's loss and the rest of the decoder's.

        transformers passes the step's count of tokens on to the model, and Whisper pays no heed to it.
        """
        assert num_items_in_batch is not None and not return_outputs
        if self.settings.gradient_checkpointing == "full_windows":
            full = inputs["input_features"].shape[-1] == self.speech_model.window
            for module in model.modules():
                if isinstance(module, GradientCheckpointingLayer):
                    module.gradient_checkpointing = full
        mean, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        share: torch.Tensor = (inputs["labels"] != IGNORED).sum() / num_items_in_batch
        loss: torch.Tensor = mean * share  # in this order: a step of one batch has a share of exactly 1
        if weight := self.settings.ctc_weight:
            aligned = ctc_loss(self.speech_model, outputs.encoder_last_hidden_state, inputs["labels"])
            loss = (1 - weight) * loss + weight * aligned / num_items_in_batch
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Loss a token and WER on validation; keeps the weights of the lowest WER, and stops when patience is spent.

        The ranks share the batches, and rank 0 decides. Raises UserError where memory runs out.
        """
        with self.judging():
            loss = validation_loss(self.speech_model, self.validation, self.compute.decode_batch_size, self.ranks)
        rate = self.validation_wer(self.ranks)
        if self.ranks.leads:
            self.best.add(self.state.global_step, rate, self.weights)
            self.curves.add_validation(self.state.global_step, loss, rate)
        metrics = {"eval_loss": loss, "eval_wer": rate}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        patience = self.settings.patience
        if patience and self.state.global_step - self.best.step >= patience * self.settings.eval_every:
            self.control.should_training_stop = self.control.should_save = True
            if self.pruning:
                self.pruning.pruned = False  # it is at its own end
        decisions = self.ranks.share((self.control.should_training_stop, self.control.should_save))
        self.control.should_training_stop, self.control.should_save = decisions
        return metrics

    @contextlib.contextmanager
    def judging(self) -> Iterator[None]:
        """Validation in training's precision; raises UserError where memory runs out."""
        self.speech_model.whisper.train(False)
        remedy = explain_out_of_memory(f"lower compute.decode_batch_size ({self.compute.decode_batch_size})")
        with remedy, torch.inference_mode(), self.accelerator.autocast():
            yield

    def validation_wer(self, ranks: Ranks) -> float:
        """In percent, of the weights as they are; these ranks share the batches."""
        shards, size = self.validation.shards, self.compute.decode_batch_size
        lengths = [entry.n_frames for entry in shards.entries]
        batches = ranks.part([*batch_by_length(self.speech_model, lengths, size)])
        mine = [number for batch in batches for number in batch]  # of which decoding makes these same batches again
        with self.judging():
            texts = decode_mels(
                self.speech_model,
                [lengths[number] for number in mine],
                lambda at: shards.mel(mine[at]),
                size,
                each=shards.folder.map,
            )
        hypotheses = ranks.merge(dict(zip(mine, texts, strict=True)))
        return wer([entry.text for entry in shards.entries], [*hypotheses.values()])

    def weights(self) -> Weights:
        """A copy of the weights now."""
        return weights_of(self.speech_model.whisper)

    def take_best(self, base: Callable[[], Weights]) -> tuple[Candidate, dict[str, float]]:
        """Give the model the weights of the lowest validation WER; returns which they are, and the WER of all tried.

        base: the weights that training started from, asked for where the settings try to mix them in.
        """
        remove_head(self.speech_model)
        best, whisper = self.best.entries, self.speech_model.whisper
        if self.settings.lora.rank:
            best = [replace(entry, weights=tuned_weights(merge_adapters(whisper, entry.weights))) for entry in best]
            remove_adapters(whisper)
        chosen, wers = choose_weights(best, self.settings.interpolate, base, self.judge)
        self.load_weights(chosen.weights)
        return chosen, wers

    def judge(self, weights: Weights) -> float:
        """The validation WER of weights, which the model has from then on."""
        self.parent.check()
        self.load_weights(weights)
        return self.validation_wer(Ranks())  # the others have ended with the training

    def load_weights(self, weights: Weights) -> None:
        self.speech_model.whisper.load_state_dict(weights, strict=False)  # the tied projection is not among them

    def current_state(self) -> TrainingState:
        pruned = bool(self.pruning and self.pruning.pruned)
        ended = self.control.should_training_stop or self.state.global_step >= self.planned_steps()
        return TrainingState(
            step=self.state.global_step,
            best=[(entry.step, entry.wer) for entry in self.best.entries],
            finished=ended and not pruned,
            adopted=self.adopted,
            pruned=pruned,
        )

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        """Where transformers would write a checkpoint piece by piece, have a whole one written."""
        others = self.ranks.gather(self.random_state())[1:] if self.ranks.count > 1 else []
        if self.ranks.leads:
            step = self.state.global_step
            self.checkpoints.save(step, lambda folder: self.write_checkpoint(folder, model, others))

    def write_checkpoint(self, folder: Path, model: torch.nn.Module, random_states: list[bytes]) -> None:
        """transformers' own files, the best weights, the curves, and what we know beside them.

        random_states: of ranks 1, 2 and so on; transformers writes rank 0's.
        """
        self.partial = folder
        for rank, state in enumerate(random_states, start=1):
            (folder / random_state_name(rank)).write_bytes(state)
        super()._save_checkpoint(model, None)
        theirs = folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        for path in theirs.iterdir():
            path.rename(folder / path.name)
        theirs.rmdir()
        self.curves.copy_to(folder)
        self.current_state().write(folder)
        before = self.checkpoints.before(self.state.global_step)
        there = {step for step, _ in before.state.best} if before else set()
        for entry in self.best.entries:
            if entry.step == self.state.global_step:
                continue  # the checkpoint's own weights
            target = folder / best_name(entry.step)
            if before and entry.step in there:
                with contextlib.suppress(OSError):  # a file system without hard links
                    os.link(before.weights_of(entry.step), target)
                    continue
            save_file(entry.weights, target)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Where adapters are trained, save what is trained alone: the rest is the base's."""
        if self.settings.lora.rank:
            state_dict = {
                name: value for name, value in self.speech_model.whisper.named_parameters() if value.requires_grad
            }
        super()._save(output_dir, state_dict)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.partial)

    def _save_rng_state(self, output_dir: str) -> None:
        """transformers' own; and of an accelerator that it passes over, the generator."""
        super()._save_rng_state(output_dir)
        if self.args.device.type in PASSED_OVER:
            path = Path(output_dir) / RANDOM_STATE
            states = torch.load(path, weights_only=False)
            torch.save(states | {GENERATOR: torch.get_device_module(self.args.device).get_rng_state()}, path)

    def random_state(self) -> bytes:
        """What transformers keeps of the random generators of this rank, as it writes it."""
        with tempfile.TemporaryDirectory() as place:
            self._save_rng_state(place)
            return (Path(place) / RANDOM_STATE).read_bytes()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Each rank's own; one that the checkpoint does not know, because another run was adopted, keeps its seed's."""
        if checkpoint is None:
            return
        own = Path(checkpoint) / (RANDOM_STATE if self.ranks.leads else random_state_name(self.ranks.rank))
        if own.exists():
            with tempfile.TemporaryDirectory() as place:
                shutil.copyfile(own, Path(place) / RANDOM_STATE)
                super()._load_rng_state(place)
            states = torch.load(own, weights_only=False)
            if self.args.device.type in PASSED_OVER and GENERATOR in states:  # else another kind of device wrote it
                torch.get_device_module(self.args.device).set_rng_state(states[GENERATOR])


def random_state_name(rank: int) -> str:
    """The file of a checkpoint with the random generators of a rank other than 0."""
    return f"rng_state_{rank}.pth"


def weights_of(whisper: torch.nn.Module) -> Weights:
    """A copy of the weights that the tuned model will have."""
    return {name: value.detach().cpu().clone() for name, value in tuned_weights(whisper.state_dict()).items()}


def tuned_weights(state: Weights) -> Weights:
    """Weights as ``save_pretrained`` names them, without CTC's and the projection tied to the embedding.

    Of a model with adapters theirs alone.
    """
    passed_by = ("proj_out.weight", f"{HEAD}.weight", f"{HEAD}.bias")
    return adapter_weights(state) or {name: value for name, value in state.items() if name not in passed_by}


def regularisation(settings: Train) -> dict[str, float]:
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


def training_arguments(
    settings: Train, compute: Compute, folder: Path, device: torch.device
) -> Seq2SeqTrainingArguments:
    """Our settings in transformers' words."""
    arguments = Seq2SeqTrainingArguments(
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
        adam_beta2=settings.adam_beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.precision == "bf16",
        fp16=settings.precision == "fp16",
        activation_checkpointing=settings.gradient_checkpointing != "none",
        optim="adamw_bnb_8bit" if settings.optimizer == "adamw_8bit" else "adamw_torch_fused",
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=settings.eval_every,
        save_strategy="steps",
        save_steps=settings.save_every,
        dataloader_num_workers=loader_workers(compute, device),
        remove_unused_columns=False,
        use_cpu=device.type == "cpu",
        accelerator_config={"non_blocking": device.type == "cuda"},
        report_to="none",
        disable_tqdm=True,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several in one process are DataParallel: slower, and never in half
    return arguments


def loader_workers(compute: Compute, device: torch.device) -> int:
    """Processes that make batches ahead of each rank: beside a CPU's training they would take its cores."""
    if compute.loader_workers != "auto":
        return compute.loader_workers
    if device.type != "cuda" or (SHARED.is_dir() and shutil.disk_usage(SHARED).free < SHARED_BYTES):
        return 0
    return min(GPU_WORKERS, max((os.cpu_count() or 1) // current_ranks().count, 1))


@torch.inference_mode()
def validation_loss(model: SpeechModel, clips: ClipDataset, batch_size: int, ranks: Ranks) -> float:
    """Mean cross-entropy a label token over a split, in nats; the ranks share the batches."""
    frames = clips.frames()
    order = sorted(range(len(clips)), key=frames.__getitem__)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    sums: dict[int, tuple[float, int]] = {}
    for at, places in ranks.part([*enumerate(batches)]):
        longest = min(frames[places[-1]], model.window) if model.context == "clip" else model.window
        batch = collate([clips[BatchItem((place,), longest)] for place in places])
        count = int((batch["labels"] != IGNORED).sum())
        inputs = {name: value.to(model.whisper.device) for name, value in batch.items()}
        sums[at] = count * model.whisper(**inputs).loss.item(), count
    total, tokens = 0.0, 0
    for loss, count in ranks.merge(sums).values():
        total += loss
        tokens += count
    return total / tokens

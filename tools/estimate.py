"""What a recipe needs before anything starts: data, download, disk, memory and hours, by a few real steps made here.

A figure is marked "measured" where this machine gave it, and "estimated" where it follows from sizes alone.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    TrainerCallback,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from stages.asr.batches import ClipDataset
from stages.asr.clips import SPLITS
from stages.asr.device import best_device, choose_precision
from stages.asr.encoder import allow_any_length
from stages.asr.mel import FRAMES_PER_SECOND, SAMPLE_RATE
from stages.asr.model import SpeechModel, silence_transformers
from stages.asr.shards import Entry, Shards, write_shard
from stages.corpora import folder
from stages.corpora.archive import PackedRelease, UnpackedRelease
from stages.corpora.common_voice import find_archive, table_name
from stages.corpora.data_collective import find_release, read_key
from stages.corpora.local import locate
from stages.corpora.selection import read_lines
from stages.params import Params, Train, TrainSource
from stages.pretrained import END_TOKEN, from_scratch, make_generation_config, set_language, train_tokenizer
from stages.runtime.errors import UserError
from stages.runtime.progress import note
from stages.training.adapters import adapted_layers, freeze_layers
from stages.training.trainer import SpeechTrainer, regularisation
from stages.training.trial import make_batching, optimizer_moments
from stages.versioning.pins import corpus_name

SHAPES = {  # of OpenAI's: width, layers of encoder and decoder, heads (openai/whisper, model-card.md)
    "tiny": (384, 4, 4, 6),
    "base": (512, 6, 6, 8),
    "small": (768, 12, 12, 12),
    "medium": (1024, 24, 24, 16),
    "large": (1280, 32, 32, 20),
    "turbo": (1280, 32, 4, 20),
}
WINDOW_SECONDS, POSITIONS = 30, 1500  # of these
RELEASES = {  # clips by table, of Common Voice releases that need not be at hand
    "cv-corpus-25.0-sv-SE": {"train": 8254, "dev": 5501, "test": 5505, "other": 5946, "validated": 42664},
    "cv-corpus-11.0-sv-SE": {"train": 7308, "dev": 5052, "test": 5069, "other": 5699},
}
SECONDS = {"synthetic": 2.1, "common_voice": 4.0, "folder": 4.0, "hub": 8.0}  # of a typical clip
RAW_BYTES = dict.fromkeys(SECONDS, 2 * SAMPLE_RATE) | {"common_voice": 6000}  # a second: of wav, and of mp3
LETTERS, PIECES = 12, 4  # label tokens a second, of a tokenizer that spells and of OpenAI's
SMALL = 20e6  # parameters up to which a processor takes whole batches in a moment
VALUE = 4  # bytes of a float32
GB = 1e9


@dataclass(frozen=True)
class Finding:
    """A line of the answer. lack: what keeps the recipe from running here, if anything."""

    topic: str
    text: str
    lack: str = ""


@dataclass(frozen=True)
class Cost:
    """What the steps gave: seconds a step, seconds to validate or evaluate a clip, peak memory in bytes, and how."""

    step: float
    decoded_clip: float
    memory: float
    how: str


def find_needs(values: Params) -> Iterator[Finding]:
    """What values need, each line as soon as it is known."""
    parts = []
    for name, download in values.download.parts().items():
        part = values.model_copy(update={"download": download})
        found = find_data(part)
        yield Finding("data", f"{name}: {found.text}" if name else found.text, found.lack)
        clips, basis = expected_clips(part, found)
        parts.append((download.corpus, taken(clips, values.download.corpora.get(name)), basis))
    for name, probe in sorted(values.download.probes.items()):
        found = find_data(values.model_copy(update={"download": values.download.alone(probe)}))
        yield Finding("data", f"probe {name}: {found.text}", found.lack)
    known = [clips for _, clips, _ in parts]
    clips = {split: sum(one[split] for one in known) for split in SPLITS if all(split in one for one in known)}
    shown = ", ".join(f"{clips[split]:,} {split}" if split in clips else f"? {split}" for split in SPLITS)
    basis = "; ".join(dict.fromkeys(basis for _, _, basis in parts))
    lengths = " and ".join(dict.fromkeys(f"{SECONDS[corpus]:g}" for corpus, *_ in parts))
    yield Finding("clips", f"{shown} ({basis}), of about {lengths} s")
    raw = {
        corpus: sum(SECONDS[name] * sum(one.values()) for name, one, _ in parts if name == corpus) for corpus in SECONDS
    }
    config = model_shape(values)
    size = VALUE * model_size(config)
    fetched = find_download(values, size)
    yield fetched
    held = training_memory(empty_model(config), values.train) if config else Held(4 * size, 4 * size)
    yield disk_space(values, raw, size, held.checkpoint, fetched)
    device = best_device()
    if values.train.precision == "fp16" and device.type == "cpu":
        yield Finding(
            "precision", "train.precision: fp16 needs a GPU; measured in fp32", "a GPU, or train.precision: fp32"
        )
    steps = values.train.max_steps or planned_steps(values, clips)
    free = device_memory(device)
    if held.training > free:
        text = f"at least {held.training / GB:.1f} GB for weights, gradients and optimizer (estimated)"
        yield Finding("memory", f"{text}; {free / GB:.1f} GB are free", "memory")
        yield Finding("time", f"{steps or '?'} steps; not measured, for they do not fit")
        return
    cost = measure(values, config, held, device)
    where = f"the GPU has {free / GB:.1f} GB" if device.type != "cpu" else f"{free / GB:.1f} GB are free"
    yield Finding("memory", f"{cost.memory / GB:.1f} GB ({cost.how}); {where}", "memory" if cost.memory > free else "")
    yield Finding("time", describe_time(values.train, clips, steps, cost))
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if device.type == "cpu" and load > cores + 1:
        yield Finding("load", f"{load:.0f} processes share {cores} cores (measured): alone it would go faster")


# Data, download, disk


def find_data(values: Params) -> Finding:
    """Whether the corpus is at hand, and where it is looked for."""
    download = values.download
    if download.corpus == "synthetic":
        return Finding("data", "synthetic, spoken here by espeak-ng: nothing to fetch")
    if download.corpus == "hub":
        return Finding("data", f"{download.hub.id} of the Hugging Face Hub, which `download` fetches")
    try:
        if path := corpus_path(values):
            return Finding("data", f"{path} is there")
        read_key()
    except UserError as error:
        return Finding("data", str(error), "data")
    settings = download.common_voice
    return Finding("data", f"Common Voice {settings.release} in {settings.locale}, which `download` fetches")


def corpus_path(values: Params) -> Path | None:
    """The release or the folder of recordings, None where it is to be fetched; raises UserError where it is missing."""
    if values.download.corpus == "common_voice":
        settings = values.download.common_voice
        if settings.release and settings.locale:
            return find_release(settings.release, settings.locale)
        return find_archive(settings)
    return locate(values.download.folder.path, "Put the folder of your recordings there")


def expected_clips(values: Params, data: Finding) -> tuple[dict[str, int], str]:
    """Clips by split, at most, and how they are known; a split that nobody knows is left out."""
    download = values.download
    if download.corpus == "synthetic":
        return {split: getattr(download.synthetic, split) for split in SPLITS}, "params.yaml"
    if download.corpus == "hub":
        limits = {split: getattr(download.hub, split).limit for split in SPLITS}
        return {split: limit for split, limit in limits.items() if limit}, "limits of params.yaml"
    path = None if data.lack else corpus_path(values)
    if download.corpus == "folder":
        return count_recordings(values, path) if path else ({}, "unknown")
    settings = download.common_voice
    if path:
        tables, basis = count_rows(values, path), "counted; at most"
    else:
        name = corpus_name(download.model_dump())
        tables, basis = RELEASES.get(re.sub(r"-\d{4}-\d\d-\d\d", "", name), {}), "known of the release; at most"
    clips = {}
    for split in SPLITS:
        section = getattr(settings, split)
        names = [table_name(table) for table in section.tables]
        rows = sum(tables[name] for name in names) if names and tables.keys() >= set(names) else None
        if (found := min(filter(None, [rows, section.limit]), default=None)) is not None:
            clips[split] = found
    return clips, basis if tables else "limits of params.yaml"


def taken(clips: dict[str, int], source: TrainSource | None) -> dict[str, int]:
    """What a source's limit, its share and train_only leave of its corpus's clips."""
    if not source:
        return clips
    counts = [count for count in (clips.get("train"), source.limit) if count is not None]
    train = {"train": max(1, round((source.share or 1) * min(counts)))} if counts else {}
    return clips | train | ({"validation": 0, "test": 0} if source.train_only else {})


def count_rows(values: Params, path: Path) -> dict[str, int]:
    """Rows of the tables that a release at hand is asked for."""
    settings = values.download.common_voice
    wanted = {table_name(table) for split in SPLITS for table in getattr(settings, split).tables}
    release = (UnpackedRelease if path.is_dir() else PackedRelease)(path, settings.locale)
    return release.tables(wanted, lambda name, file: max(sum(1 for _ in read_lines(file)) - 1, 0))


def count_recordings(values: Params, path: Path) -> tuple[dict[str, int], str]:
    """Clips of a folder of recordings: by its table's splits, or by the shares."""
    settings = values.download.folder
    rows, _ = folder.read_table(path, folder.find_table(path, settings.table))
    counts = {split: len(rows.get(split, [])) for split in SPLITS}
    for split, share in (("validation", settings.validation), ("test", settings.test)):
        if not counts[split]:
            counts[split] = round(share * sum(counts.values()))
            counts["train"] -= counts[split]
    counts["train"] = min(filter(None, [counts["train"], settings.limit]))
    return counts, "counted; at most"


def find_download(values: Params, size: float) -> Finding:
    """What `pretrained` fetches, where it is not here yet."""
    base, revision = values.whisper.base, values.whisper.revision
    if base == "scratch" or base[0] in "./~":
        return Finding("download", "none: the model is made here" if base == "scratch" else f"none: {base}")
    if isinstance(try_to_load_from_cache(base, "model.safetensors", revision=revision), str):
        return Finding("download", f"none: {base} is in Hugging Face's cache")
    return Finding("download", f"{base}, about {size / GB:.1f} GB (estimated)")


def disk_space(values: Params, raw: dict[str, float], size: float, checkpoint: float, download: Finding) -> Finding:
    """What the outs, their copies in DVC's cache and the checkpoints take, against what is free.

    raw: seconds of clips by corpus.
    """
    seconds = sum(raw.values())
    frame = values.featurize.n_mels * (1 if values.featurize.dtype == "uint8" else 2)
    features = seconds * FRAMES_PER_SECOND * frame
    kept = min(features, values.compute.kept_gigabytes * GB)
    parts = {
        "raw clips": sum(RAW_BYTES[corpus] * own for corpus, own in raw.items()),
        "features": 2 * features + kept,  # in the workspace, in DVC's cache, and for later runs
        "models": 4 * size + (size if "about" in download.text else 0),
        "checkpoints": (values.checkpoints.keep.local + 1) * checkpoint,  # one while it is written
    }
    total, free = sum(parts.values()), shutil.disk_usage(".").free
    listed = ", ".join(f"{name} {part / GB:.1f}" for name, part in parts.items())
    text = f"{total / GB:.1f} GB ({listed}; estimated); {free / GB:.1f} GB are free"
    return Finding("disk", text, "disk" if total > free else "")


# The model


def model_shape(values: Params) -> WhisperConfig | None:
    """The base model's shape, from its own config.json or by its name; None for scratch, which its section tells.

    Raises UserError where neither is known.
    """
    base, revision = values.whisper.base, values.whisper.revision
    if base == "scratch":
        return None
    own = Path(base).expanduser() / "config.json" if base[0] in "./~" else None
    if own is None and isinstance(cached := try_to_load_from_cache(base, "config.json", revision=revision), str):
        own = Path(cached)
    if own is not None:
        if not own.is_file():
            raise UserError(f"whisper.base: {own} is missing")
        return WhisperConfig.from_json_file(own)
    words = re.split(r"[^a-z0-9]+", base.lower())
    named = [name for name in SHAPES if name in words]
    if not named:
        raise UserError(f"whisper.base: the shape of {base} is not known: fetch it first (dvc repro pretrained)")
    return openai_shape(named[-1], values.featurize.n_mels)


def openai_shape(name: str, n_mels: int) -> WhisperConfig:
    """The shape of one of OpenAI's models, by its name in SHAPES."""
    width, encoder, decoder, heads = SHAPES[name]
    return WhisperConfig(
        vocab_size=51865,
        d_model=width,
        encoder_layers=encoder,
        decoder_layers=decoder,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_ffn_dim=4 * width,
        num_mel_bins=n_mels,
    )


def model_size(config: WhisperConfig | None) -> int:
    """Of a model of this shape, without making it; a model from scratch counts as SMALL."""
    if config is None:
        return int(SMALL / 2)
    return empty_model(config).num_parameters()


def empty_model(config: WhisperConfig) -> WhisperForConditionalGeneration:
    """A model of this shape whose weights take no memory."""
    with torch.device("meta"):
        return WhisperForConditionalGeneration(config)


@dataclass(frozen=True)
class Held:
    """Bytes of what a training holds beside activations: weights, gradients, moments; and of one of its checkpoints."""

    training: float
    checkpoint: float


def training_memory(whisper: WhisperForConditionalGeneration, settings: Train) -> Held:
    """What training a model, given without memory, will hold; freezes of it what the settings freeze."""
    if settings.freeze:
        freeze_layers(whisper, settings.freeze)
    weights = VALUE * whisper.num_parameters()
    if settings.lora.rank:
        layers = adapted_layers(whisper, settings.lora).values()
        trained = VALUE * settings.lora.rank * sum(layer.in_features + layer.out_features for layer in layers)
        moments = trained * {"adamw": 2, "adamw_8bit": 2 / VALUE, "muon": 1}[settings.optimizer]
        return Held(weights + 2 * trained + moments, 2 * trained + moments)
    trained = VALUE * whisper.num_parameters(only_trainable=True)
    moments = sum(moment.nbytes for moment in optimizer_moments(whisper, settings.optimizer))
    return Held(weights + trained + moments, 2 * weights + moments)  # with the best weights


def make_model(values: Params, config: WhisperConfig | None, shards: Shards) -> SpeechModel:
    """A model of the recipe's shape with fresh weights, set as train sets it."""
    silence_transformers()
    if config is None:
        model = from_scratch(values.whisper.scratch, shards)
    else:
        tokenizer = train_tokenizer([entry.text for entry in shards.entries], 0, WINDOW_SECONDS)
        ids = tokenizer.get_vocab()
        marks = {f"{name}_token_id": ids[END_TOKEN] for name in ("bos", "eos", "pad")}
        config.update(marks | {"decoder_start_token_id": ids["<|startoftranscript|>"], "begin_suppress_tokens": None})
        config.update(regularisation(values.train))
        whisper = WhisperForConditionalGeneration(config)
        whisper.generation_config = make_generation_config(ids)
        extractor = WhisperFeatureExtractor(feature_size=shards.n_mels, chunk_length=WINDOW_SECONDS)
        model = SpeechModel(whisper, tokenizer, extractor)
    set_language(model, values.whisper.language, values.whisper.task)
    device: Any = best_device()  # transformers' wrapper of `to` hides its parameters
    allow_any_length(model.whisper).to(device)
    return model


# Steps


class NoCheckpoints:
    """A manager that keeps none."""

    def __init__(self, place: Path):
        self.folder = place

    def save(self, step: int, write: Callable[[Path], None]) -> None:
        """Nothing is written."""


class Stopwatch(TrainerCallback):
    """Seconds that the batches, and the optimizer, of the last step took, and the validation after it."""

    def __init__(self, device: torch.device):
        self.device, self.last = device, 0.0
        self.batches, self.optimizer, self.validation = 0.0, 0.0, 0.0

    def lap(self) -> float:
        """Seconds since the last call."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        before, self.last = self.last, time.perf_counter()
        return self.last - before

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.lap()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        self.batches = self.lap()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.optimizer = self.lap()

    def on_evaluate(self, *_: Any, **__: Any) -> None:
        self.validation = self.lap()


def measure(values: Params, config: WhisperConfig | None, held: Held, device: torch.device) -> Cost:
    """A few real training steps and a validation on made-up clips of typical length.

    A processor takes a part of a large model's batch, whose time and memory grow with its clips; a GPU takes all of it.
    Raises UserError where the GPU's memory runs out.
    """
    settings = values.train
    whole = device.type != "cpu" or model_size(config) < SMALL
    batch_clips, batch_windows = batch_sizes(values)
    clips = batch_clips if whole else min(2, batch_clips)
    windows = batch_windows if whole else 1
    share = 1.0 if settings.context == "full" else settings.full_context_share
    with typical_shards(values, clips) as shards:
        note("making a model of the recipe's shape, with fresh weights")
        before = psutil.Process().memory_info().rss
        model = make_model(values, config, shards)
        state = held.training if config else 4 * VALUE * model.whisper.num_parameters()
        short = timed_steps(values, model, shards, "clip", clips) if share < 1 else (0.0, 0.0, 0.0)
        full = timed_steps(values, model, shards, "full", windows, 2 if whole else 1) if share > 0 else (0.0, 0.0, 0.0)
        a_batch = (1 - share) * short[0] * batch_clips / clips + share * full[0] * batch_windows / windows
        step = settings.gradient_accumulation * a_batch + max(short[1], full[1])
        decoded = (short[2] or full[2]) / len(shards)  # at the trained context
    if device.type == "cuda":
        return Cost(step, decoded, torch.cuda.max_memory_allocated(), "measured")
    peak = peak_memory()
    activations = max(peak - before - state, 0)
    used, wanted = (windows, batch_windows) if share > 0 else (clips, batch_clips)
    memory = peak + activations * (wanted / used - 1)
    how = "measured" if whole else f"estimated from {used} of {wanted} clips of a batch"
    return Cost(step, decoded, memory, how)


def batch_sizes(values: Params) -> tuple[int, int]:
    """Clips of typical length in a batch, and full windows."""
    window = values.whisper.scratch.seconds if values.whisper.base == "scratch" else WINDOW_SECONDS
    batching = make_batching(values.train, window * FRAMES_PER_SECOND)
    return batching.limit(int(typical_seconds(values) * FRAMES_PER_SECOND)), batching.limit(batching.window)


def typical_seconds(values: Params) -> float:
    """Of a clip of the corpus, of several the one with the longest, as far as the model takes it."""
    longest = max(SECONDS[part.corpus] for part in values.download.parts().values())
    seconds = min(longest, values.featurize.max_seconds)
    return min(seconds, values.whisper.scratch.seconds) if values.whisper.base == "scratch" else seconds


def peak_memory() -> float:
    """The most memory that this process has held, in bytes."""
    import resource  # not on Windows
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)


@contextmanager
def typical_shards(values: Params, n_clips: int) -> Iterator[Shards]:
    """Clips of noise as long as the corpus's, with as many label tokens a second."""
    seconds = typical_seconds(values)
    frames, dtype, n_mels = int(seconds * FRAMES_PER_SECOND), values.featurize.dtype, values.featurize.n_mels
    letters = int(seconds * (LETTERS if values.whisper.base == "scratch" else PIECES))
    text = ("hej på dig " * letters)[:letters]
    noise = torch.Generator().manual_seed(1)
    clips = []
    for number in range(n_clips):
        mel = torch.randint(0, 200, (frames, n_mels), generator=noise, dtype=torch.uint8)
        data = mel.numpy().tobytes() if dtype == "uint8" else (mel / 200).half().numpy().tobytes()
        clips.append((Entry(f"{number:05}", text, "noise", "yes", seconds, frames, 0.5), data))
    with tempfile.TemporaryDirectory() as place:
        write_shard(Path(place) / "00000.zip", dtype, n_mels, clips)
        yield Shards(Path(place))


def timed_steps(
    values: Params, model: SpeechModel, shards: Shards, context: str, n_clips: int, steps: int = 2
) -> tuple[float, float, float]:
    """Seconds of a batch forwards and back, and of the optimizer, in the last step; and of a validation."""
    device = model.whisper.device
    precision: str = values.train.precision
    if precision == "auto":
        precision = choose_precision(device)
    elif device.type == "cpu" and precision == "fp16":
        precision = "fp32"
    changes: dict[str, Any] = {"context": context, "full_context_share": 0.0, "batch_size": n_clips, "max_steps": steps}
    changes |= {"batch_seconds": None}
    changes |= {"gradient_accumulation": 1, "epochs": None, "precision": precision, "patience": None, "log_every": 100}
    settings = values.train.model_copy(update=changes | {"eval_every": 100, "save_every": 100, "warmup_steps": 0})
    clips = ClipDataset(shards, model, settings.max_label_tokens)
    model.context = context
    longest = max(map(len, clips.labels)) + 1
    model.whisper.generation_config.max_length = longest  # fresh weights would not end by themselves
    clock = Stopwatch(device)
    with tempfile.TemporaryDirectory() as place:
        kind = "full window" if context == "full" else "own length"
        note(f"measuring on the {kind}: steps {steps}, clips in a batch {n_clips}")
        manager: Any = NoCheckpoints(Path(place))
        trainer = SpeechTrainer(model, clips, clips, settings, values.compute, manager, Path(place))
        trainer.add_callback(clock)
        trainer.partial = Path(place)  # where transformers looks for its checkpoints at the end
        trainer.run(None)
        return clock.batches, clock.optimizer, clock.validation


def planned_steps(values: Params, clips: dict[str, int]) -> int | None:
    """Optimizer steps of so many epochs; None where the clips are not known."""
    if "train" not in clips:
        return None
    batch = batch_sizes(values)[values.train.context == "full"]
    return round((values.train.epochs or 0) * -(-clips["train"] // (batch * values.train.gradient_accumulation)))


def describe_time(settings: Train, clips: dict[str, int], steps: int | None, cost: Cost) -> str:
    """Hours of training, of its validations, and of the test before and after."""
    if not steps:
        return f"{cost.step:.2f} s a step (measured); how many steps, the unknown clips decide"
    training = steps * cost.step
    validations = steps // settings.eval_every
    parts = [f"training {span(training)}: {steps} steps of {cost.step:.2f} s, measured"]
    total = training
    for name, count in (("validation", validations * clips.get("validation", 0)), ("test", 2 * clips.get("test", 0))):
        total += count * cost.decoded_clip
        parts.append(f"{name} {span(count * cost.decoded_clip)}: {count} clips of {cost.decoded_clip:.2f} s")
    return f"{span(total)} ({'; '.join(parts)})"


def span(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < 5400:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def device_memory(device: torch.device) -> float:
    """Bytes that are free: of the GPU, or of this machine."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    return float(psutil.virtual_memory().available)

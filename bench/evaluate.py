"""``python -m bench.evaluate``: clips a second of decoding, against what else runs a Whisper.

Random weights in one of OpenAI's shapes, and noise as long as Common Voice's clips. No text ends by itself: every way
says as many tokens as speech of the clip's length has, or, where a batch has one limit, as its longest clip has.
``Seq2SeqTrainer.predict`` is the notebooks' way: clips padded to 30 s, in batches of 8, generation and then the loss.
faster-whisper runs the same weights in 8 bits, where it is installed (pip install '.[convert]').
"""

import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, pipeline

from bench.train import made_up
from stages.asr.batches import BatchItem, ClipDataset, collate
from stages.asr.decoding import decode_mels
from stages.asr.device import best_device, quick_precision
from stages.asr.mel import FRAMES_PER_SECOND, MAX_SAMPLES, SAMPLE_RATE
from stages.asr.model import SpeechModel
from stages.asr.shards import Shards
from stages.pretrained import END_TOKEN
from tools.convert.ctranslate import write_ctranslate
from tools.estimate import PIECES, SHAPES

BATCH = 8  # of the notebooks'


@click.command()
@click.option("--size", type=click.Choice(list(SHAPES)), default="small", show_default=True)
@click.option("--device", default="", help="cpu, cuda, …  [default: the accelerator where there is one]")
@click.option("--clips", default=0, help="How many.  [default: 32 on a CPU, else 512]")
def main(size: str, device: str, clips: int) -> None:
    """Time the ways to decode with one model."""
    place = torch.device(device) if device else best_device()
    clips = clips or (32 if place.type == "cpu" else 512)
    with made_up(size, clips, place) as (values, model, shards):
        model.whisper.eval()
        endless(model)
        few = sorted(range(clips), key=lambda number: number % 4)[: max(clips // 4, BATCH)]  # of the slow ways
        batch = values.compute.decode_batch_size
        found = {
            "the notebooks' way: predict, batches of 8, 30 s": timed(lambda: predict(values, model, shards, few), few),
            "pipeline(), one by one": timed(lambda: by_pipeline(model, shards, few), few),
            "here, on full windows": timed(lambda: here(replace(model, context="full"), shards, batch, few), few),
        }
        if (seconds := by_faster_whisper(model, shards, few)) is not None:
            found["faster-whisper, int8, one by one"] = seconds
        everything = list(range(clips))
        clip = replace(model, context="clip")
        found["here, at the clips' own length"] = timed(lambda: here(clip, shards, batch, everything), everything)
    baseline = next(iter(found.values()))
    click.echo(f"whisper-{size}'s shape on {place.type}")
    for name, seconds in found.items():
        click.echo(f"{name:<50} {1 / seconds:7.3f} clips/s, {baseline / seconds:.1f}x")


def endless(model: SpeechModel) -> None:
    """Have no text end, so that random weights say as much as trained ones."""
    config = model.whisper.generation_config
    config.suppress_tokens = [*(config.suppress_tokens or []), config.eos_token_id]


def tokens_of(n_frames: int) -> int:
    return max(int(n_frames / FRAMES_PER_SECOND * PIECES), 1)


def timed(work: Callable[[], object], clips: list[int]) -> float:
    """Seconds a clip."""
    begun = time.perf_counter()
    work()
    return (time.perf_counter() - begun) / len(clips)


def here(model: SpeechModel, shards: Shards, batch: int, clips: list[int]) -> None:
    """As ``evaluate`` decodes: on a GPU in its half precision."""
    lengths = [shards.entries[number].n_frames for number in clips]
    with quick_precision(model.whisper.device):
        decode_mels(model, lengths, lambda number: shards.mel(clips[number]), batch, limit=tokens_of)


def predict(values: Any, model: SpeechModel, shards: Shards, clips: list[int]) -> None:
    """transformers' trainer with ``predict_with_generate``."""
    dataset = ClipDataset(shards, model, values.train.max_label_tokens)
    whisper: Any = model.whisper
    precision = values.train.precision
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            per_device_eval_batch_size=BATCH,
            predict_with_generate=True,
            bf16=precision == "bf16",
            fp16=precision == "fp16",
            use_cpu=whisper.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # as bench.train has it
        trainer = Seq2SeqTrainer(whisper, arguments, data_collator=collate)
        for start in range(0, len(clips), BATCH):
            places = clips[start : start + BATCH]
            longest = max(tokens_of(shards.entries[place].n_frames) for place in places)
            items: Any = [dataset[BatchItem((place,), model.window)] for place in places]
            trainer.predict(items, max_new_tokens=longest, min_new_tokens=longest)


def by_pipeline(model: SpeechModel, shards: Shards, clips: list[int]) -> None:
    """transformers' own, from samples."""
    recognise = pipeline(
        "automatic-speech-recognition",
        model=model.whisper,
        tokenizer=model.tokenizer,
        feature_extractor=model.extractor,
        device=model.whisper.device,
    )
    for samples, n_tokens in noise(shards, clips):
        recognise(
            {"raw": samples, "sampling_rate": SAMPLE_RATE},
            generate_kwargs={"max_new_tokens": n_tokens, "min_new_tokens": n_tokens},
        )


def noise(shards: Shards, clips: list[int]) -> list[tuple[np.ndarray, int]]:
    """Samples as long as the clips, and the tokens that they are to give."""
    draw = np.random.default_rng(2)
    sounds = []
    for number in clips:
        n_frames = shards.entries[number].n_frames
        samples = 0.1 * draw.standard_normal(n_frames * SAMPLE_RATE // FRAMES_PER_SECOND)
        sounds.append((samples.astype(np.float32), tokens_of(n_frames)))
    return sounds


def by_faster_whisper(model: SpeechModel, shards: Shards, clips: list[int]) -> float | None:
    """Seconds a clip of CTranslate2's engine in 8 bits; None where it is not installed."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        return None
    with tempfile.TemporaryDirectory() as folder:
        narrow: Any = copy.deepcopy(model.whisper)
        narrow.resize_token_embeddings(len(model.tokenizer))  # conversion widens it again
        write_ctranslate(replace(model, whisper=narrow), Path(folder, "int8"), "int8")
        engine = WhisperModel(str(Path(folder, "int8")), device="cpu", cpu_threads=os.cpu_count() or 1)
        start = ("<|startoftranscript|>", "<|sv|>", "<|transcribe|>", "<|notimestamps|>")
        prompt = [engine.hf_tokenizer.token_to_id(token) for token in start]
        never = [engine.hf_tokenizer.token_to_id(END_TOKEN)]
        said = []

        def work() -> None:
            for samples, n_tokens in noise(shards, clips):
                window = np.pad(samples, (0, MAX_SAMPLES - len(samples)))
                encoded = engine.encode(engine.feature_extractor(window)[:, : model.window])
                (text,) = engine.model.generate(  # which makes half of max_length, as of its 448
                    encoded, [prompt], beam_size=1, max_length=2 * n_tokens, suppress_tokens=never, suppress_blank=False
                )
                said.append(len(text.sequences_ids[0]) / n_tokens)

        seconds = timed(work, clips)
    if min(said) < 1:
        click.echo(f"faster-whisper said {min(said):.2f} of the tokens that it should have", err=True)
    return seconds


if __name__ == "__main__":
    main()

"""``python -m bench.gpu``: what holds on the accelerator of this machine, in under ten minutes.

Everything that the project says of a GPU and that its tests, which have none, cannot see: each check is a line that
says what holds, what does not, or why it was not tried; then pace and memory of the ways to train, and the figures of
bench.train and bench.evaluate, as far as the time allows. Wants no data. Ends with 1 where something does not hold.
"""

import gc
import importlib.util
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from bench.ranks import last_step
from bench.train import made_up, trained_here
from bench.tuning import WAYS
from stages.asr.device import autocast, best_device, choose_precision, half_precision
from stages.params import Train, load_params
from stages.pretrained import pretrained
from stages.runtime.errors import one_line
from tests.support.material import ROOT, TINY, sounds, write_params, write_shards
from tests.support.training import RESULTS, SETTINGS, arguments, newest, results, wait_for

LONG_RUN = SETTINGS | {"train.max_steps": 120, "train.save_every": 20, "train.eval_every": 40}
ROOM = 2_000_000_000  # bytes: a CUDA context and some weights, not gradients and moments of 200 million of them
MINUTES = 10
OWN = "all weights, in its own precision"
TRIED = ("all weights, float32", OWN, "LoRA, rank 8, all linear layers", "frozen encoder", "8-bit AdamW")
HEADS = {"whisper.scratch.d_model": 128}  # of 64 as OpenAI's have: attention has kernels by that
STEPS = SETTINGS | {"train.max_steps": 8, "train.eval_every": 8, "train.save_every": 8, "train.dropout": 0.0}
STEPS |= {"train.spec_augment.time_prob": 0.0}  # which a batch draws


@click.command()
@click.option("--size", default="small", show_default=True, help="Of the model whose pace is measured.")
def main(size: str) -> None:
    """Check and measure."""
    device, end = best_device(), time.monotonic() + 60 * MINUTES
    click.echo(f"device: {describe(device)}")
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        place = make_material(Path(folder))
        for check in (accumulation, same_bytes, killed, half_against_full, out_of_memory, two_processes):
            verdict = outcome(check, place, device)
            failures += verdict.startswith("DOES NOT")
            click.echo(f"{check.__name__.replace('_', ' ')}: {verdict}")
    click.echo(f"\ntraining whisper-{size}'s shape at the clips' own length, batches of {batch_of(device)}")
    for way in TRIED:
        verdict = outcome(pace, way, size, device) if time.monotonic() < end else "not tried: the time is over"
        failures += verdict.startswith("DOES NOT")
        click.echo(f"{way}: {verdict}")
    for module in ("bench.train", "bench.evaluate"):
        click.echo(f"\n{module} --size {size}")
        command = [sys.executable, "-m", module, "--size", size]
        try:
            failures += subprocess.run(command, check=False, timeout=max(end - time.monotonic(), 1)).returncode != 0
        except subprocess.TimeoutExpired:
            click.echo(f"not to its end: {MINUTES} minutes are over; `python -m {module}` alone has none")
    sys.exit(min(failures, 1))


def outcome(check: Callable[..., str], *given: object) -> str:
    """What a check says; an error does not hold up the next one, which is worth as much."""
    try:
        return check(*given)
    except Exception as error:
        return f"DOES NOT HOLD: {one_line(error)}"


def describe(device: torch.device) -> str:
    """The device, its memory and precision, what training takes of itself, and the versions."""
    versions = f"torch {torch.__version__}; `precision: auto` trains in {choose_precision(device)}"
    if device.type != "cuda":
        return f"{device}, {versions}; no GPU, so that this is a rehearsal"
    found = torch.cuda.get_device_properties(device)
    half = str(half_precision(device)).removeprefix("torch.")
    kind = f"{torch.cuda.device_count()} x {found.name}, {found.total_memory / 1e9:.0f} GB each"
    return (
        f"{kind}, capability {found.major}.{found.minor}, half precision {half}, CUDA {torch.version.cuda}, {versions}"
    )


def make_material(folder: Path) -> Path:
    """A tiny model with fresh weights and a few sounds for it."""
    for split in ("train", "validation"):
        write_shards(folder / split, sounds())
    whisper = load_params(write_params(folder / "tiny.yaml", TINY | HEADS)).whisper
    pretrained(whisper, folder / "train", folder / "pretrained")
    return folder


def start(place: Path, name: str, params: Path) -> "subprocess.Popen[bytes]":
    """Begin a run, or begin it again."""
    command = [sys.executable, "-m", "stages", "train", *arguments(place, name, params)]
    with (place / name / "log").open("a") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)


def trained(place: Path, name: str, settings: dict[str, object]) -> Path:
    """Train to the end as a process; returns the run's folder. Raises RuntimeError with the log's end."""
    params = write_params(place / f"{name}.yaml", settings)
    if start(place, name, params).wait():
        raise RuntimeError((place / name / "log").read_text()[-500:])
    return place / name


def accumulation(place: Path, device: torch.device) -> str:
    """8 x 1, 4 x 2 and 2 x 4 give the same losses."""
    return same_losses(place, [{"batch_size": size, "gradient_accumulation": 8 // size} for size in (8, 4, 2)], 1)


def same_losses(place: Path, shapes: list[dict[str, int]], ranks: int) -> str:
    """Whether steps that are cut up differently have the same losses; the last shape in so many processes."""
    losses = []
    for number, shape in enumerate(shapes):
        settings = STEPS | {f"train.{name}": value for name, value in shape.items()} | {"train.precision": "fp32"}
        settings |= {"train.learning_rate": 1e-3, "compute.gpus": ranks if number == len(shapes) - 1 else 1}
        run = trained(place, f"cut-{ranks}-{number}", settings)
        losses.append(np.loadtxt(run / "curves/training.tsv", skiprows=1)[:, 1])
    apart = max(np.abs(other / losses[0] - 1).max() for other in losses[1:])
    return f"{'holds' if apart < 1e-4 else 'DOES NOT HOLD'}: losses within {apart:.1e}"


def same_bytes(place: Path, device: torch.device) -> str:
    """Two runs in the device's half precision end in the same bytes."""
    settings = LONG_RUN | {"train.precision": own_precision(device)}
    first, second = (trained(place, name, settings) and results(place, name) for name in ("first", "second"))
    different = [name for name in RESULTS if first[name] != second[name]]
    if different:
        return f"DOES NOT HOLD: {', '.join(different)} differ"
    warned = "may not give the same bytes" in (place / "first/log").read_text()
    return f"holds: two runs, the same bytes{', though training warned that they may not be' if warned else ''}"


def killed(place: Path, device: torch.device) -> str:
    """A run that is killed goes on to the bytes of one that was not."""
    params = write_params(place / "killed.yaml", LONG_RUN | {"train.precision": own_precision(device)})
    process = start(place, "killed", params)
    wait_for(process, lambda: newest(place / "killed") >= 40)
    process.send_signal(signal.SIGKILL)
    process.wait()
    trained(place, "killed", LONG_RUN | {"train.precision": own_precision(device)})
    if not (place / "first").is_dir():
        trained(place, "first", LONG_RUN | {"train.precision": own_precision(device)})
    resumed = "resuming run" in (place / "killed" / "log").read_text()
    same = results(place, "first") == results(place, "killed")
    return (
        f"{'holds' if same and resumed else 'DOES NOT HOLD'}: killed at step 40, resumed {resumed}, same bytes {same}"
    )


def half_against_full(place: Path, device: torch.device) -> str:
    """The encoder in half precision is within what its digits allow of float32."""
    half = half_precision(device) or torch.bfloat16
    with made_up("tiny", 4, device) as (_, model, shards), torch.inference_mode():
        model.whisper.eval()
        mels = torch.from_numpy(np.stack([shards.mel(number)[:, :200] for number in range(4)])).to(device)
        whole = model.whisper.model.encoder(mels).last_hidden_state
        with autocast(device, half):
            short = model.whisper.model.encoder(mels).last_hidden_state.float()
    apart = float((whole - short).norm() / whole.norm())
    bound = 30 * torch.finfo(half).eps  # four layers, each with some products one after the other
    return f"{'holds' if apart < bound else 'DOES NOT HOLD'}: {half} within {apart:.1e} of float32"


def out_of_memory(place: Path, device: torch.device) -> str:
    """Where another program has the memory, training says so in one line, before its first step."""
    if device.type != "cuda":
        return "not tried: a CPU's memory gives way to the disk"
    large = place / "large"
    large.mkdir()
    for split in ("train", "validation"):
        shutil.copytree(place / split, large / split)
    shape = {"whisper.scratch.d_model": 768, "whisper.scratch.layers": 12, "whisper.scratch.heads": 12}
    pretrained(
        load_params(write_params(large / "shape.yaml", TINY | shape)).whisper, large / "train", large / "pretrained"
    )
    free, _ = torch.cuda.mem_get_info(device)
    filler = torch.empty(max(free - ROOM, 0), dtype=torch.uint8, device=device)
    status = start(large, "full", write_params(large / "params.yaml", STEPS)).wait()
    del filler
    torch.cuda.empty_cache()
    last = (large / "full" / "log").read_text().strip().splitlines()[-1]
    steps = last_step(large / "full")
    holds = status == 1 and "the memory of the GPU ran out" in last and not steps
    return f"{'holds' if holds else 'DOES NOT HOLD'}: status {status} after {steps} steps, {last!r}"


def two_processes(place: Path, device: torch.device) -> str:
    """Two ranks have the losses of one process with twice the accumulation."""
    if device.type != "cpu" and (device.type != "cuda" or torch.cuda.device_count() < 2):
        return "not tried: one GPU"
    shapes = [{"batch_size": 4, "gradient_accumulation": 2}, {"batch_size": 4, "gradient_accumulation": 1}]
    return same_losses(place, shapes, 2)


def pace(way: str, size: str, device: torch.device) -> str:
    """Clips a second of training in one of bench.tuning's ways, in the device's own precision, and its peak memory."""
    if way == TRIED[-1] and not importlib.util.find_spec("bitsandbytes"):
        return "not tried: pip install bitsandbytes"
    batch = batch_of(device)
    with made_up(size, 4 * batch, device) as (values, model, shards):
        changes: dict[str, Any] = {"precision": own_precision(device)}
        changes |= {"precision": "fp32"} if way == TRIED[0] else WAYS.get(way, {})
        lora = values.train.lora.model_dump() | changes.pop("lora", {})
        values = values.model_copy(update={"train": Train(**values.train.model_dump() | changes | {"lora": lora})})
        gc.collect()  # the model before, which refers to itself
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        seconds = trained_here(values, model, shards, "clip", batch, 4 * batch)
        peak = f", {torch.cuda.max_memory_allocated(device) / 1e9:.1f} GB" if device.type == "cuda" else ""
    return f"{1 / seconds:.1f} clips/s{peak}"


def batch_of(device: torch.device) -> int:
    """Clips a batch."""
    return 2 if device.type == "cpu" else 16


def own_precision(device: torch.device) -> str:
    """The precision that training has here."""
    return {torch.bfloat16: "bf16", torch.float16: "fp16", None: "fp32"}[half_precision(device)]


if __name__ == "__main__":
    main()

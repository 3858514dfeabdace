"""Where a model computes: the device, the precision that it is quick in, and what to do where its memory runs out."""

import contextlib
from collections.abc import Iterator

import torch

from stages.runtime.errors import UserError


def best_device() -> torch.device:
    """The accelerator where there is one; a torch that was compiled for one may run on a machine without."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return device or torch.device("cpu")


def half_precision(device: torch.device) -> torch.dtype | None:
    """The half precision that a CUDA device computes in itself: bfloat16, or float16 before Ampere; None elsewhere."""
    if device.type != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def choose_precision(device: torch.device) -> str:
    """The precision that a device is fast in: bf16 or fp16 on CUDA, bf16 on a CPU that computes in it, else fp32."""
    if half := half_precision(device):
        return "bf16" if half == torch.bfloat16 else "fp16"
    quick = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if device.type == "cpu" and quick else "fp32"


def quick_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Have matrix products computed in the half precision of a device that has one: what speech is decoded in."""
    return autocast(device, half_precision(device))


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Have matrix products computed in dtype, and what needs its range in float32; with None all is as it is."""
    return torch.autocast(device.type, dtype=dtype) if dtype else contextlib.nullcontext()


@contextlib.contextmanager
def explain_out_of_memory(remedy: str) -> Iterator[None]:
    """Raise UserError with the remedy where memory for tensors runs out, on an accelerator or on the CPU."""
    try:
        yield
    except RuntimeError as error:
        on_cpu = "DefaultCPUAllocator" in str(error)  # torch has no type of its own for it
        on_gpu = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)  # so says MPS, untyped
        if not on_cpu and not on_gpu:
            raise
        raise UserError(f"the memory of {'this machine' if on_cpu else 'the GPU'} ran out: {remedy}") from None

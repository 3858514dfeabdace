"""Where a model computes, on machines that are not here: torch is told what it would find there."""

import pytest
import torch

from stages.asr.device import autocast, best_device, choose_precision, explain_out_of_memory, half_precision
from stages.runtime.errors import UserError
from tests.support.material import compiled_for_cuda


def test_the_best_device_computes():
    assert torch.ones(2, device=best_device()).sum().item() == 2


def test_a_torch_for_cuda_computes_on_the_processor_where_there_is_no_gpu(monkeypatch):
    compiled_for_cuda(monkeypatch)
    assert best_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_device() == torch.device("cuda")


def test_half_precision_is_the_devices_own(monkeypatch):
    assert half_precision(torch.device("cpu")) is None
    for own, dtype in ((True, torch.bfloat16), (False, torch.float16)):  # a T4 only emulates bfloat16
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True, own=own: own or including_emulation
        )
        assert half_precision(torch.device("cuda")) == dtype
        assert choose_precision(torch.device("cuda")) == ("bf16" if own else "fp16")


@pytest.mark.parametrize(
    ("avx512", "amx", "precision"), [(True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")]
)
def test_a_processor_is_trained_on_in_bf16_where_it_computes_in_it(monkeypatch, avx512, amx, precision):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert choose_precision(torch.device("cpu")) == precision
    assert choose_precision(torch.device("mps")) == "fp32"


def test_autocast_is_for_a_dtype_and_for_none_nothing():
    matrix = torch.ones(2, 2)
    for dtype, expected in ((torch.bfloat16, torch.bfloat16), (None, torch.float32)):
        with autocast(torch.device("cpu"), dtype):
            assert (matrix @ matrix).dtype == expected


def test_memory_that_runs_out_is_one_line_with_the_remedy():
    with pytest.raises(UserError, match=r"^the memory of the GPU ran out: lower x$"), explain_out_of_memory("lower x"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    refusal = pytest.raises(UserError, match=r"^the memory of this machine ran out: lower x$")
    with refusal, explain_out_of_memory("lower x"):
        torch.empty(1 << 50)


def test_a_gpu_without_an_error_of_its_own_is_understood():
    with pytest.raises(UserError, match="the memory of the GPU ran out: wait"), explain_out_of_memory("wait"):
        raise RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)")


def test_any_other_error_stays_what_it_is():
    with pytest.raises(RuntimeError, match="shape"), explain_out_of_memory("lower x"):
        torch.ones(2).reshape(3)

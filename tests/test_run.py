"""What of a machine makes a run another one."""

import os
import platform

import torch

from stages.training.run import describe_machine, processor


def test_on_a_processor_it_is_the_processor():
    assert describe_machine(torch.device("cpu")) == {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def test_on_an_accelerator_it_is_its_kind_whatever_the_processor(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    here = describe_machine(torch.device("cuda"))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    monkeypatch.setattr(platform, "processor", lambda: "another")
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    assert describe_machine(torch.device("cuda")) == here == {"accelerator": "Tesla T4"}
    assert describe_machine(torch.device("mps")) == {"accelerator": "mps"}

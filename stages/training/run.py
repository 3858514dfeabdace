"""What a training run is: everything that shapes its result, and the name that follows from it."""

import contextlib
import hashlib
import json
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.params import Train
from stages.runtime.files import file_digest
from stages.runtime.imports import reached_modules
from stages.training.libraries import wanted_libraries

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "numpy")  # whose versions may shape the weights
ONE_PROCESS = {"machine": {"ranks": 1}}  # what a run does not say of itself, and one of several processes does
BY_VALUE = frozenset({"stages.params"})  # whose values count instead of its code

Parts = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """A run by what shapes its result.

    parts: {"params", "shards", "base", "code", "versions", "machine"}, each a dict of names and JSON values.
    """

    parts: Parts

    @property
    def name(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()[:16]

    def differences(self, theirs: Parts) -> dict[str, list[str]]:
        """How this run differs from one of other parts: {"params": ["learning_rate: 0.001, was 0.002"], …}."""
        found = {}
        for part, values in self.parts.items():
            usual = ONE_PROCESS.get(part, {})
            mine, their = flatten_names(usual | values), flatten_names(usual | theirs.get(part, {}))
            names = sorted(name for name in mine.keys() | their.keys() if mine.get(name) != their.get(name))
            if names:
                found[part] = [
                    f"{name}: {abbreviate(mine.get(name))}, was {abbreviate(their.get(name))}" for name in names
                ]
        return found


def short_name(run: str) -> str:
    """A run's name as people see it."""
    return run[:6]


def describe_run(
    settings: Train, shards: dict[str, str], base: str, module: str, device: "torch.device", ranks: int = 1
) -> Run:
    """The run of these settings, shards' digests, base model's digest and training module on so many such devices."""
    libraries = (*LIBRARIES, *wanted_libraries(settings))
    return Run(
        {
            "params": settings.model_dump(mode="json"),
            "shards": shards,
            "base": {"digest": base},
            "code": {name: file_digest(path) for name, path in reached_modules(module, BY_VALUE).items()},
            "versions": {"python": platform.python_version()} | {name: version(name) for name in libraries},
            "machine": describe_machine(device) | ({"ranks": ranks} if ranks > 1 else {}),
        }
    )


def describe_machine(device: "torch.device") -> dict[str, Any]:
    """What of a machine shapes a result: an accelerator's kind, whatever the processor beside it, or the processor."""
    import torch  # a second that whoever only names runs, such as the uploader of checkpoints, need not wait

    if device.type != "cpu":
        return {"accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type}
    return {
        "processor": processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    """The processor's model, as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def flatten_names(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted names."""
    result: dict[str, Any] = {}
    for name, value in values.items():
        result |= flatten_names(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return result


def abbreviate(value: object) -> str:
    """A value for a person: of a SHA-256 its beginning."""
    return value[:8] if isinstance(value, str) and len(value) == 64 else str(value)

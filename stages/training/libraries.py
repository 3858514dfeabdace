"""Libraries that some settings of train want, and others do not."""

import importlib.util
import logging

from stages.params import Train
from stages.runtime.errors import UserError


def wanted_libraries(settings: Train) -> dict[str, str]:
    """What settings want beside the usual: what to set to do without, by the library's name."""
    wanted = {"peft": "train.lora.rank: 0"} if settings.lora.rank else {}
    return wanted | ({"bitsandbytes": "train.optimizer: adamw"} if settings.optimizer == "adamw_8bit" else {})


def check_libraries(settings: Train) -> None:
    """Raise UserError where one is missing."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # warns of kernels that training does not use
    for name, otherwise in wanted_libraries(settings).items():
        if importlib.util.find_spec(name) is None:
            key = otherwise.partition(":")[0]
            raise UserError(f"{key}: {name} is not installed: pip install {name}, or set {otherwise}")

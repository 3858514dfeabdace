"""What of a model is trained: all of it, all above some lower layers, or low-rank adapters beside its weights (LoRA).

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", by peft. While it trains, a model has the adapters
in it, and checkpoints hold nothing else; at the end they are added to the weights, and a plain Whisper is left.
"""

import torch
from torch import nn
from transformers import WhisperForConditionalGeneration

from stages.params import Lora, Train
from stages.runtime.errors import UserError
from stages.training.averaging import Weights

ADAPTER = "default"  # peft's name for the only one
MARK = ".lora_"  # in the names of its weights, and of no others


def choose_trained(whisper: WhisperForConditionalGeneration, settings: Train) -> None:
    """Have a model train what the settings say, in place; its outputs stay the same.

    Raises UserError where it has fewer layers than are to be frozen.
    """
    if settings.freeze:
        freeze_layers(whisper, settings.freeze)
    if settings.lora.rank:
        add_adapters(whisper, settings.lora, settings.seed)


def freeze_layers(whisper: WhisperForConditionalGeneration, freeze: str | int) -> None:
    """Keep the encoder as it is, or what comes before its layer of this number, counted from 0."""
    encoder = whisper.model.encoder
    if not isinstance(freeze, int):
        encoder.requires_grad_(False)
        return
    if freeze > len(encoder.layers):
        raise UserError(f"train.freeze is {freeze}, and the encoder has {len(encoder.layers)} layers: lower it")
    for part in (encoder.conv1, encoder.conv2, encoder.embed_positions, *encoder.layers[:freeze]):
        part.requires_grad_(False)


def adapted_layers(whisper: WhisperForConditionalGeneration, lora: Lora) -> dict[str, nn.Linear]:
    """The layers that get adapters, by name: those of the wanted kinds which are not frozen."""
    return {
        name: module
        for name, module in whisper.named_modules()
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in lora.targets and module.weight.requires_grad
    }


def add_adapters(whisper: WhisperForConditionalGeneration, lora: Lora, seed: int) -> None:
    """Put adapters beside the weights, which are frozen; the seed decides what they begin with."""
    from peft import LoraConfig, inject_adapter_in_model  # seconds to import

    names = list(adapted_layers(whisper, lora))
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # peft draws on the processor
        torch.manual_seed(seed)
        inject_adapter_in_model(config, whisper, ADAPTER)


def adapter_weights(state: Weights) -> Weights:
    """Of a model's weights those of its adapters; empty where it has none."""
    return {name: value for name, value in state.items() if MARK in name}


def merge_adapters(whisper: WhisperForConditionalGeneration, adapters: Weights) -> Weights:
    """The weights of the plain Whisper that a model with these adapters is: on the processor, by a plain one's names.

    The model has these adapters from then on.
    """
    from peft.tuners.lora import LoraLayer

    whisper.load_state_dict(adapters, strict=False)
    added = {
        f"{name}.base_layer.weight": module.get_delta_weight(ADAPTER)
        for name, module in whisper.named_modules()
        if isinstance(module, LoraLayer)
    }
    merged = {}
    with torch.no_grad():
        for name, value in whisper.state_dict().items():
            if MARK not in name:
                whole = value + added[name] if name in added else value.clone()
                merged[name.replace(".base_layer.", ".")] = whole.cpu()
    return merged


def remove_adapters(whisper: WhisperForConditionalGeneration) -> None:
    """Leave a plain Whisper, as it was before it got adapters."""
    from peft.tuners.lora import LoraLayer

    for name, module in list(whisper.named_modules()):
        if isinstance(module, LoraLayer):
            parent, _, child = name.rpartition(".")
            setattr(whisper.get_submodule(parent), child, module.get_base_layer())
    del whisper.peft_config

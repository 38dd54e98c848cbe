"""Activation checkpointing: the same losses and weights bit for bit, and less kept for the backward pass."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from dino_dense import load_backbone
from dino_dense.backbone.dino_vit import DinoViT, build_module
from dino_dense.training.drop_path import KeyedDropPath, replace_drop_path
from dino_dense.training.recompute import recompute_blocks
from tasks import RunOptions, get, run_one
from tasks.finetuning.config import FinetuneConfig
from tasks.harness.task import no_pictures
from tests.tasks.test_linear_task import make_folder


def networks(drop_path: float = 0.5) -> tuple[nn.Module, nn.Module]:
    """The same network twice, the second with checkpoints."""
    pair = []
    for again in (False, True):
        torch.manual_seed(0)
        body = build_module("vit_micro_patch8_32", drop_path_rate=drop_path).train()
        replace_drop_path(body)
        if again:
            recompute_blocks(body, "vit_micro")
        pair.append(body)
    return pair[0], pair[1]


def gradients(body: nn.Module, sizes: tuple[int, ...] = (32, 16)) -> list[torch.Tensor]:
    """Of groups of crops, each with drop path of its own, as pretraining runs them before one backward pass."""
    generator = torch.Generator().manual_seed(1)
    outputs = []
    for size in sizes:
        for module in body.modules():
            if isinstance(module, KeyedDropPath):
                module.scale = 2.0 * (torch.rand(4, generator=generator) < 0.5)
        outputs.append(body(torch.rand(4, 3, size, size, generator=generator)))
    torch.cat(outputs).square().mean().backward()
    return [parameter.grad for parameter in body.parameters() if parameter.grad is not None]


def test_gradients_of_groups_of_crops_are_the_same():
    plain, checkpointed = (gradients(body) for body in networks())
    assert len(plain) == len(checkpointed) > 20
    assert all(torch.equal(*pair) for pair in zip(plain, checkpointed, strict=True))


def test_less_is_kept_for_the_backward_pass():
    def kept(body: nn.Module) -> int:
        storages: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        for block in body.blocks:  # type: ignore[union-attr]
            block.register_forward_pre_hook(lambda _, inputs: [pack(part) for part in inputs] and None)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = body(torch.rand(16, 3, 32, 32))
        own = {parameter.untyped_storage().data_ptr() for parameter in body.parameters()}
        del out
        return sum(size for pointer, size in storages.items() if pointer not in own)

    plain, checkpointed = (kept(body) for body in networks(drop_path=0.0))
    assert checkpointed < plain / 4


def test_compiled_blocks_are_computed_again():
    plain, checkpointed = networks(drop_path=0.0)
    for block in checkpointed.blocks:  # type: ignore[union-attr]
        block.compile(dynamic=False, backend="aot_eager")
    for ours, theirs in zip(gradients(checkpointed, (16,)), gradients(plain, (16,)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_networks_of_other_kinds_are_refused():
    for name in ("resnet18", "efficientnet_b0", "xcit_nano_12_p16_224"):
        with pytest.raises(ValueError, match=rf"activation_checkpointing is on, but {name} is no plain vision"):
            recompute_blocks(build_module(name), name)


def test_names_of_weights_stay():
    plain, checkpointed = networks()
    assert list(plain.state_dict()) == list(checkpointed.state_dict())
    assert isinstance(checkpointed, DinoViT)


def test_fine_tuning_gives_the_same_weights(tmp_path: Path):
    root = make_folder(tmp_path / "set", {"dark": 6, "light": 6})
    config = FinetuneConfig(data=str(root), resize=32, crop=32, epochs=1, warmup_epochs=0, batch_size=6, amp="bf16")
    task, weights = replace(get("finetune"), draw=no_pictures), []
    for again in (False, True):
        out = tmp_path / str(again)
        options = RunOptions(ckpt="random:vit_micro_patch8_32", out=str(out), device="cpu")
        run_one(task, options, replace(config, activation_checkpointing=again))
        weights.append(load_backbone(str(out / "checkpoints" / "model.safetensors")).weights_sha256)
    assert weights[0] == weights[1]

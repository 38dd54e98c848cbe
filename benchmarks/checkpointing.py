"""Pretraining with activation checkpointing against without: memory of an optimizer step, and bytes kept.

The bytes that the student's blocks keep for the backward pass are also counted for a GPU's batch, with tensors that
have a device, a shape and a type but no content: this needs no GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from benchmarks.bench import Row, in_new_process, publish
from benchmarks.training_step import DEVICE, FIRST_STEP, TIMED, make_batch, make_trainer, step_of
from dino_dense.backbone.dino_vit import build_module
from dino_dense.pretrain.network import MultiCropNetwork
from dino_dense.report import peak_memory_mib, reset_peak_memory
from dino_dense.training.recompute import recompute_blocks

DTYPE = "bf16" if DEVICE.type == "cuda" else "fp32"
COUNTED = (("vit_small_patch16_224", 64), ("vit_base_patch16_224", 64), ("vit_small_patch8_224", 64))
"""Architectures, and images of a batch of 2 x 224 + 8 x 96, of the counted rows."""


def step(checkpointing: bool) -> tuple[float, float]:
    """Peak MiB of a step above the memory before it, and its loss."""
    trainer = make_trainer(replace(TIMED, activation_checkpointing=checkpointing, drop_path_rate=0.1), DTYPE)
    batch = make_batch(TIMED, 0)
    step_of(trainer, batch, FIRST_STEP)  # allocates the optimizer's state
    reset_peak_memory(DEVICE)
    before = peak_memory_mib(DEVICE)
    loss = step_of(trainer, batch, FIRST_STEP + 1)
    return peak_memory_mib(DEVICE) - before, loss


def measured() -> Row:
    (mib, loss), (low_mib, same_loss) = (in_new_process(step, again).result for again in (False, True))
    work = f"DINO step, ViT-S/16, {TIMED.batch_size} images, {DTYPE}, activation checkpointing (plain: without)"
    check = f"loss {same_loss:.6f}, {loss:.6f} without"
    same = same_loss == loss if DEVICE.type == "cpu" else abs(same_loss - loss) < 1e-2
    return Row("checkpointing", work, mib, low_mib, "MiB", target=1.5, check=check, agrees=same)


# --- Counting -----------------------------------------------------------------------------------------------


def counted(arch: str, images: int) -> Row:
    mib = [in_new_process(kept_mib, arch, images, checkpointing).result for checkpointing in (False, True)]
    work = f"kept for the backward pass by {arch}, {images} images, 2x224 + 8x96, fp16 on a GPU (counted, not run)"
    return Row("checkpointing", work, *mib, "MiB", target=3.0)


def kept_mib(arch: str, images: int, checkpointing: bool) -> float:
    """What the student's forward pass keeps for the backward pass, without its weights."""
    body = build_module(arch).train()
    if checkpointing:
        recompute_blocks(body, arch)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False  # autocast asks for a device
    with FakeTensorMode():
        for module in body.modules():
            for name, weight in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty(weight.shape, device="cuda")))
        network = MultiCropNetwork(body)
        groups = [torch.empty(count * images, 3, side, side, device="cuda") for count, side in ((2, 224), (8, 96))]
        with counting(body) as storages, torch.autocast("cuda", torch.float16), FlashAttention():
            kept = network(groups)
        del kept
        own = {parameter.untyped_storage()._cdata for parameter in body.parameters()}
        return sum(size for storage, size in storages.items() if storage not in own) / 2**20


class FlashAttention(TorchFunctionMode):
    """The kernel of attention that a GPU takes, which PyTorch would not choose without one."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return torch.ops.aten._scaled_dot_product_flash_attention(*args[:3])[0]


@contextmanager
def counting(body: nn.Module) -> Iterator[dict[int, int]]:
    """Bytes of each storage that autograd saves, and that enters a block: these checkpointing keeps by itself."""
    storages: dict[int, int] = {}
    alive: list[object] = []

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # else another storage may get its id
        storages[storage._cdata] = storage.nbytes()
        return tensor

    def enter(block: nn.Module, inputs: Sequence[Tensor]) -> None:
        note(inputs[0])

    hooks = [block.register_forward_pre_hook(enter) for block in body.blocks]  # type: ignore[union-attr]
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield storages
    for hook in hooks:
        hook.remove()


def main() -> list[Row]:
    rows = [measured(), *(counted(*case) for case in COUNTED)]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()

"""Student and teacher networks: a backbone for crops of several sizes, with drop path keyed by sample.

Shapes: b images in the micro-batch, B in the global batch, V views, N patches of a global crop, C features.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dino_dense.backbone.dino_vit import DinoViT
from dino_dense.backbone.dinov3 import DinoV3
from dino_dense.backbone.grid import check_whole
from dino_dense.pretrain import streams
from dino_dense.pretrain.bodies import BodyOptions, new_body
from dino_dense.pretrain.crops import CropOptions
from dino_dense.pretrain.objective import Views
from dino_dense.pretrain.options import Ranges
from dino_dense.pretrain.rotary import RotaryJitter, rotary_embedding
from dino_dense.training import seeds
from dino_dense.training.drop_path import KeyedDropPath, kept_rows, replace_drop_path, scales, skip_dropped_rows
from dino_dense.training.recompute import recompute_blocks, recomputed


@dataclass(frozen=True)
class NetworkOptions(BodyOptions):
    """Network"""

    arch: str = "vit_small_patch16_224"
    """Backbone: vit_{micro,tiny,small,base}_patch{P}_{SIZE}, resnet50, or any timm name. (main_dino: ViT-S/16)"""
    drop_path_rate: float = 0.1
    """Stochastic depth of the student's last block, in [0, 1); it rises linearly from 0 in the first block. Only vision
    transformers and XCiT have it; for other networks this option has no effect. (main_dino)"""
    skip_dropped: bool = False
    """Compute the branches of a block only for the crops that drop path keeps, as DINOv2 does. Equal numbers up to
    rounding; at a rate of 0.3, 15 % of the branches' work is left out. Not with compile or pack. (not in main_dino)"""
    compile: bool = False
    """Compile the networks' blocks (torch.compile): a slower start, then faster steps. (not in main_dino)"""
    pack: bool = False
    """For ViTs: run global and local crops through each block together, with separate attention: fewer and larger
    matrix products for a GPU. Not with compile. (not in main_dino)"""

    activation_checkpointing: bool = False
    """For ViTs: keep only the input of each block for the backward pass, and compute the block again there. Equal
    numbers, less memory, slower steps. (not in main_dino)"""

    shard: bool = False
    """For ViTs on several processes: each keeps a part of every weight, gradient and optimizer state, and a block has
    whole weights only while it computes (FSDP2). For networks that do not fit one device; others are faster without.
    Equal numbers up to rounding, and the same files. Only with adamw. (not in main_dino)"""

    RANGES: ClassVar[Ranges] = {"drop_path_rate": (0, 0.99)}

    def check(self) -> None:
        """Refuse options that exclude each other."""
        super().check()
        if self.skip_dropped and (self.compile or self.pack):
            raise ValueError("skip_dropped is on with compile or pack, which need batches of one size: choose one")
        if self.compile and self.pack:
            raise ValueError("compile and pack are both on: packing cannot be compiled, choose one")


class MultiCropNetwork(nn.Module):
    """A backbone for groups of crops. Crops of one size form a batch; with `pack`, all crops do.

    Args:
        backbone: a timm network without classifier.
        pack: run all groups through each block together.
        needs_patches: also return the patch tokens of the first group.
    """

    def __init__(self, backbone: nn.Module, pack: bool = False, needs_patches: bool = False) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.pack, self.needs_patches = pack, needs_patches
        self.mask_token: nn.Parameter | None = None
        """[1, C]: replaces the embedding of a masked patch; 0 at first (iBOT, DINOv2)."""
        self.rotary: RotaryJitter | None = None
        """Draws rotary coordinates in training; None: they are the patches' centers."""
        self.recomputes = False
        """Whether the backward pass computes the blocks again."""
        self.before_group: Callable[[], None] = lambda: None
        self.before_packed: Callable[[Sequence[torch.Size]], None] = lambda sizes: None

    def add_mask_token(self) -> None:
        """Add a mask token, so that `forward` accepts masks."""
        self.mask_token = nn.Parameter(torch.zeros(1, self.backbone.num_features))

    def recompute_blocks(self, name: str) -> None:
        """Compute the blocks again in the backward pass.

        Raises:
            ValueError: this network, called `name`, is no vision transformer.
        """
        self.recomputes = True
        if not isinstance(self.backbone, DinoV3):
            recompute_blocks(self.backbone, name)

    def forward(self, groups: Sequence[Tensor], masks: Tensor | None = None) -> Views:
        """Groups of normalized crops [N_i, 3, S_i, S_i], global crops first -> features of all crops.

        Args:
            masks: bool [N_0, N] on the CPU: patches of the first group to mask.
        """
        if self.pack and len(groups) > 1:
            return self._packed(groups, masks)
        cls, patches = [], None
        for number, crops in enumerate(groups):
            self.before_group()
            if isinstance(self.backbone, DinoV3) or (number == 0 and self.needs_patches):
                tokens = self._tokens(crops, masks if number == 0 else None, number)
                cls.append(self.backbone.forward_head(tokens))
                if number == 0 and self.needs_patches:
                    patches = tokens[:, self.backbone.num_prefix_tokens :]
            else:
                cls.append(self.backbone(crops))
        return Views(torch.cat(cls), patches, masks, groups[0] if self.needs_patches else None)

    def _tokens(self, crops: Tensor, masks: Tensor | None, group: int) -> Tensor:
        """[N_i, 3, S_i, S_i] -> normalized tokens of the last block [N_i, L_i, C]."""
        vit, tokens = self.backbone, self._embed(crops, masks)
        if not isinstance(vit, DinoV3):
            return vit.norm(vit.blocks(tokens))
        side = crops.shape[-1] // vit.shape.patch_size
        change = self.rotary.of(group) if self.rotary else None
        ropes = rotary_embedding(vit, (side, side), change)  # [N, 2c], or [blocks, N, 2c] if each has its own
        for number, block in enumerate(vit.blocks):
            rope = ropes if change is None else ropes[number]
            tokens = recomputed(block, tokens, rope=rope) if self.recomputes else block(tokens, rope=rope)
        return vit.norm(tokens)

    def _embed(self, crops: Tensor, masks: Tensor | None) -> Tensor:
        """[N_i, 3, S_i, S_i] -> the tokens that enter the first block, with masked patches replaced."""
        vit = self.backbone
        embedded = vit.patch_embed(crops)  # [N_i, h, w, C]
        if self.mask_token is not None and masks is not None:
            hidden = masks.to(crops.device, non_blocking=True).view(*embedded.shape[:-1], 1)
            embedded = torch.where(hidden, self.mask_token.to(embedded.dtype), embedded)
        if isinstance(vit, DinoV3):
            return vit._pos_embed(embedded)[0]  # with its prefix tokens, without positions
        return vit.norm_pre(vit.patch_drop(vit._pos_embed(embedded)))

    def _packed(self, groups: Sequence[Tensor], masks: Tensor | None) -> Views:
        """Run the tokens of all groups through each layer together, except attention."""
        vit = self.backbone
        tokens = [self._embed(crops, masks if number == 0 else None) for number, crops in enumerate(groups)]
        sizes = [part.shape[:2] for part in tokens]  # crops, tokens of a crop
        self.before_packed(sizes)
        packed = torch.cat([part.flatten(0, 1) for part in tokens])[None]  # [1, all tokens, C]
        with PackedAttention(sizes):
            packed = vit.blocks(packed)
        parts = packed[0].split([crops * length for crops, length in sizes])
        by_crop = [part.unflatten(0, size) for part, size in zip(parts, sizes, strict=True)]
        patches = vit.norm(by_crop[0][:, vit.num_prefix_tokens :]) if self.needs_patches else None
        cls = vit.norm(torch.cat([part[:, 0] for part in by_crop]))
        return Views(cls, patches, masks, groups[0] if self.needs_patches else None)


def shared_units(network: MultiCropNetwork, arch: str) -> list[nn.Module]:
    """The parts of a network that gather their weights by themselves (`training.sharding`): each block, then the rest.

    Raises:
        ValueError: the network has no blocks.
    """
    if not hasattr(network.backbone, "blocks"):
        raise ValueError(f"shard is on, but {arch} is no vision transformer: leave it off")
    return [*network.backbone.blocks, network]


class PackedAttention(TorchFunctionMode):
    """A context in which tokens [1, heads, ΣN_i*L_i, c] attend only to tokens of their own crop.

    Args:
        sizes: for each group, the number of crops N_i and the tokens per crop L_i.
    """

    def __init__(self, sizes: Sequence[torch.Size]) -> None:
        super().__init__()
        self.sizes = sizes

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        lengths = [crops * length for crops, length in self.sizes]
        parts = zip(*(tensor[0].split(lengths, dim=1) for tensor in args[:3]), self.sizes, strict=True)
        outs = []
        for *qkv, size in parts:  # each [heads, N_i*L_i, c]
            q, k, v = (part.unflatten(1, size).transpose(0, 1) for part in qkv)  # [N_i, heads, L_i, c]
            out = func(q, k, v, *args[3:], **(kwargs or {}))
            outs.append(out.transpose(0, 1).flatten(1, 2))
        return torch.cat(outs, dim=1)[None]


class DropPathKeys:
    """Replaces the drop-path modules of a network and supplies their masks.

    The random numbers are a function of (seed, step, module, view, slot in the global batch).
    """

    def __init__(
        self, network: MultiCropNetwork, n_views: int, batch_size: int, seed: int, *, skip_dropped: bool = False
    ) -> None:
        self.seed, self.n_views, self.batch_size = seed, n_views, batch_size
        self.modules = replace_drop_path(network.backbone)
        self.skipping = set(skip_dropped_rows(network.backbone)) if skip_dropped else set()
        """Modules whose branches compute the kept rows only."""
        if skip_dropped and self.modules and not self.skipping:
            raise ValueError("skip_dropped is on, but the network is no plain vision transformer: leave it off")
        self.kept: list[KeyedDropPath] = []
        """Modules of rate 0, of `make_blocks_alike`."""
        self.pending: list[Tensor] = []
        self.pending_rows: list[list[Tensor | None]] = []
        network.before_group = self._next_group
        network.before_packed = self._all_groups

    def make_blocks_alike(self, network: MultiCropNetwork) -> None:
        """Give the first block, whose rate is 0, modules of the others' class: one compilation then serves all."""
        blocks = network.backbone.blocks if self.modules and hasattr(network.backbone, "blocks") else ()
        for block in blocks:
            for name in ("drop_path1", "drop_path2"):
                if isinstance(getattr(block, name, None), nn.Identity):
                    self.kept.append(KeyedDropPath(0.0))
                    setattr(block, name, self.kept[-1])

    def uniform(self, step: int) -> Tensor:
        """Random numbers of one step, [modules, V, B] in [0, 1), equal in every process."""
        shape = (len(self.modules), self.n_views, self.batch_size)
        return seeds.uniform(shape, streams.DROP_PATH, self.seed, step)

    def set_masks(self, step: int, slots: Tensor, device: torch.device) -> None:
        """Prepare the masks of a micro-batch's two forward passes: 2 global views, then the local views."""
        if not self.modules:
            return
        numbers = scales(self.modules, self.uniform(step)[:, :, slots.cpu()])  # [modules, V, b]
        groups = [numbers[:, :2].flatten(1), numbers[:, 2:].flatten(1)]
        # On the CPU: to count the kept rows on the device, the host would wait for it.
        self.pending_rows = [
            [
                kept_rows(scale).to(device, non_blocking=True) if module in self.skipping else None
                for module, scale in zip(self.modules, group, strict=True)
            ]
            for group in groups
        ]
        self.pending = [group.to(device, non_blocking=True) for group in groups]

    def _next_group(self) -> None:
        if self.modules:
            by_module, rows = self.pending.pop(0), self.pending_rows.pop(0)
            for module, scale, kept in zip(self.modules, by_module, rows, strict=True):
                module.scale, module.rows = scale, kept
            for module in self.kept:
                module.scale = torch.ones_like(by_module[0])

    def _all_groups(self, sizes: Sequence[torch.Size]) -> None:
        """Set the masks of a packed batch: all tokens of a crop use the crop's number."""
        if not self.modules:
            return
        parts = [part.repeat_interleave(length, dim=1) for part, (_, length) in zip(self.pending, sizes, strict=True)]
        self.pending = [torch.cat(parts, dim=1)[:, None]]  # [modules, 1, all tokens]
        self._next_group()


def build_network(
    options: NetworkOptions, crops: CropOptions, *, needs_patches: bool = False, body: nn.Module | None = None
) -> MultiCropNetwork:
    """A student with weights drawn from the global generator, or with a body that exists (`start.trainable_copy`).

    Raises:
        ValueError: an unknown architecture, an architecture without a required property, or a crop size that is no
            multiple of the patch size.
    """
    arch = options.arch
    backbone = new_body(options, arch, options.drop_path_rate, crops.global_crop_size) if body is None else body
    if not hasattr(backbone, "cls_token"):
        _remove_drop_path(backbone)
    _check_crop_sizes(backbone, arch, crops)
    if options.pack and not isinstance(backbone, DinoViT):
        raise ValueError(
            f"pack is on, but {arch} is no vit_{{SIZE}}_patch{{P}}_{{PIXELS}} with a table of positions: leave it off"
        )
    if needs_patches and not isinstance(backbone, DinoViT | DinoV3):
        raise ValueError(
            f"one of the objectives learns patch tokens, but {arch} is none of the vit_{{SIZE}}_patch{{P}}_{{PIXELS}}: "
            "choose such an --arch, or other --objectives"
        )
    if options.jitters and not isinstance(backbone, DinoV3):
        raise ValueError(
            f"rope_shift, rope_jitter or rope_rescale is set, but {arch} has no rotary positions: leave it"
        )
    if not hasattr(backbone, "blocks"):
        backbone = backbone.to(memory_format=torch.channels_last)  # fastest for convolutions
    return MultiCropNetwork(backbone, options.pack, needs_patches)


def teacher_of(student: MultiCropNetwork) -> MultiCropNetwork:
    """A copy without drop path and without gradient. Call it before `DropPathKeys` takes over the student."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    _remove_drop_path(teacher)
    return teacher


def _remove_drop_path(network: nn.Module) -> None:
    for block in list(network.modules()):
        for name, child in list(block.named_children()):
            if isinstance(child, DropPath):
                setattr(block, name, nn.Identity())


def compile_blocks(network: MultiCropNetwork, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile the backbone's blocks in place: all blocks share a compilation, and parameter names stay."""
    body = network.backbone
    parts = body.blocks if hasattr(body, "blocks") else body.children()
    for part in parts:
        part.compile(dynamic=False, backend=backend)


def _check_crop_sizes(backbone: nn.Module, arch: str, crops: CropOptions) -> None:
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch is None:
        return
    for name in ("global_crop_size", "local_crop_size"):
        check_whole(name, getattr(crops, name), patch if isinstance(patch, int) else patch[0], arch)  # XCiT's is an int

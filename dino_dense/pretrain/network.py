"""Student and teacher: a backbone and a head over crops of several sizes, with drop path keyed by sample.

Shapes: b images in the micro-batch, B in the global batch, V views, K prototypes, C features.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dino_dense.backbone.dino_vit import DinoViT, build_module
from dino_dense.backbone.grid import check_whole
from dino_dense.pretrain.batches import DROP_PATH_STREAM
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.head import DINOHead
from dino_dense.training import seeds
from dino_dense.training.drop_path import replace_drop_path


class MultiCropNetwork(nn.Module):
    """Backbone and head. Crops of one size go through the backbone as one batch; packed, all crops do."""

    def __init__(self, backbone: nn.Module, head: DINOHead, pack: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.pack = pack
        self.before_packed: Callable[[Sequence[torch.Size]], None] = lambda sizes: None

    def forward(self, groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Groups of normalised crops [N_i, 3, S_i, S_i] -> scores [ΣN, K] and backbone features [ΣN, C]."""
        if self.pack and len(groups) > 1:
            features = self._packed(groups)
        else:
            features = torch.cat([self.backbone(crops) for crops in groups])
        return self.head(features), features

    def _packed(self, groups: Sequence[Tensor]) -> Tensor:
        """The class tokens [ΣN, C] of all groups, whose tokens share every layer but attention."""
        vit: Any = self.backbone
        tokens = [vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(crops)))) for crops in groups]
        sizes = [part.shape[:2] for part in tokens]  # crops, tokens of a crop
        self.before_packed(sizes)
        packed = torch.cat([part.flatten(0, 1) for part in tokens])[None]  # [1, all tokens, C]
        with PackedAttention(sizes):
            packed = vit.blocks(packed)
        parts = packed[0].split([crops * length for crops, length in sizes])
        firsts = [part.unflatten(0, size)[:, 0] for part, size in zip(parts, sizes, strict=True)]
        return vit.norm(torch.cat(firsts))


class PackedAttention(TorchFunctionMode):
    """Within it, tokens [1, heads, ΣN_i*L_i, c] attend only to those of their own crop.

    Args:
        sizes: of each group of crops, their number N_i and the tokens L_i of each.
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
    """Replaces the drop-path modules of a network and feeds their masks.

    The random numbers are a function of (seed, step, module, view, slot in the global batch).
    """

    def __init__(self, network: MultiCropNetwork, config: PretrainConfig) -> None:
        self.seed, self.n_views, self.batch_size = config.seed, config.n_views, config.batch_size
        self.modules = replace_drop_path(network.backbone)
        self.pending: list[Tensor] = []
        network.backbone.register_forward_pre_hook(self._next_group)
        network.before_packed = self._all_groups

    def uniform(self, step: int) -> Tensor:
        """[modules, V, B] in [0, 1): the numbers of one step, equal in every process."""
        shape = (len(self.modules), self.n_views, self.batch_size)
        return seeds.uniform(shape, DROP_PATH_STREAM, self.seed, step)

    def arm(self, step: int, slots: Tensor, device: torch.device) -> None:
        """Prepare the masks of one micro-batch's two forwards: 2 global views, then the local ones."""
        if not self.modules:
            return
        numbers = self.uniform(step)[:, :, slots.cpu()].to(device, non_blocking=True)  # [modules, V, b]
        self.pending = [numbers[:, :2].flatten(1), numbers[:, 2:].flatten(1)]

    def _next_group(self, _module: nn.Module, _inputs: object) -> None:
        if self.modules:
            for module, numbers in zip(self.modules, self.pending.pop(0), strict=True):
                module.uniform = numbers

    def _all_groups(self, sizes: Sequence[torch.Size]) -> None:
        """The masks of a packed batch: a crop's number for each of its tokens."""
        if not self.modules:
            return
        parts = [part.repeat_interleave(length, dim=1) for part, (_, length) in zip(self.pending, sizes, strict=True)]
        self.pending = [torch.cat(parts, dim=1)[:, None]]  # [modules, 1, all tokens]
        self._next_group(self.modules[0], None)


def build_student_and_teacher(config: PretrainConfig) -> tuple[MultiCropNetwork, MultiCropNetwork]:
    """Both networks with the same weights, drawn from the seed; the teacher without drop path and without
    gradient.

    Raises ValueError for an unknown architecture, or a crop size that the patch size does not divide.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = _build(config, config.drop_path_rate)
        teacher = _build(config, 0.0)
    teacher.load_state_dict(student.state_dict())
    teacher.requires_grad_(False)
    return student, teacher


def _build(config: PretrainConfig, drop_path_rate: float) -> MultiCropNetwork:
    backbone = build_module(config.arch, drop_path_rate=drop_path_rate, img_size=config.global_crop_size)
    _check_crop_sizes(backbone, config)
    head = DINOHead(
        in_dim=backbone.num_features,  # type: ignore[arg-type]
        out_dim=config.out_dim,
        hidden_dim=config.head_hidden_dim,
        bottleneck_dim=config.head_bottleneck_dim,
        n_layers=config.head_layers,
        norm_last_layer=config.norm_last_layer,
        use_bn=config.use_bn_in_head,
    )
    if config.pack and not isinstance(backbone, DinoViT):
        raise ValueError(
            f"pack is on, but {config.arch} is none of the vit_{{SIZE}}_patch{{P}}_{{PIXELS}}: leave it off"
        )
    if not hasattr(backbone, "blocks"):
        backbone = backbone.to(memory_format=torch.channels_last)  # what convolutions are fastest with
    return MultiCropNetwork(backbone, head, config.pack)


def compile_blocks(network: MultiCropNetwork) -> None:
    """Compile the backbone's repeated parts in place: one compilation serves all blocks, parameter names stay."""
    body: Any = network.backbone
    parts = body.blocks if hasattr(body, "blocks") else body.children()
    for part in parts:
        part.compile(dynamic=False)


def _check_crop_sizes(backbone: nn.Module, config: PretrainConfig) -> None:
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch is None:
        return
    for name in ("global_crop_size", "local_crop_size"):
        check_whole(name, getattr(config, name), patch[0], config.arch)

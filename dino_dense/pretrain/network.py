"""Student and teacher: a backbone and a head over crops of several sizes, with drop path keyed by sample.

Shapes: b images in the micro-batch, B in the global batch, V views, K prototypes, C features.
"""

from collections.abc import Sequence

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from dino_dense.bodies import build_module
from dino_dense.pretrain.batches import DROP_PATH_STREAM
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import derive_seed
from dino_dense.pretrain.head import DINOHead


class MultiCropNetwork(nn.Module):
    """Backbone and head. Crops of one size go through the backbone as one batch."""

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, groups: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Groups of normalised crops [N_i, 3, S_i, S_i] -> scores [ΣN, K] and backbone features [ΣN, C]."""
        features = torch.cat([self.backbone(crops) for crops in groups])
        return self.head(features), features


class KeyedDropPath(nn.Module):
    """Stochastic depth whose masks come from outside, row by row.

    timm's own draws from the global generator, so a sample's mask would depend on how the batch is split over
    processes and micro-batches, and on everything drawn before.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.keep_prob = 1.0 - drop_prob
        self.uniform: Tensor | None = None
        """[N] in [0, 1), one number per row of the next batch; a row with at least keep_prob is dropped."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, ...] -> the same, with some rows 0 and the others divided by the probability to be kept."""
        if self.uniform is None:
            raise RuntimeError("drop path has no random numbers for this batch: use DropPathKeys.arm first")
        scale = (self.uniform < self.keep_prob).to(x.dtype) / self.keep_prob
        return x * scale.view(-1, *[1] * (x.ndim - 1))


class DropPathKeys:
    """Replaces the drop-path modules of a network and feeds their masks.

    The random numbers are a function of (seed, step, module, view, place in the global batch).
    """

    def __init__(self, network: MultiCropNetwork, config: PretrainConfig) -> None:
        self.seed, self.n_views, self.batch_size = config.seed, config.n_views, config.batch_size
        self.modules = _replace_drop_path(network.backbone)
        self.pending: list[Tensor] = []
        network.backbone.register_forward_pre_hook(self._next_group)

    def uniform(self, step: int) -> Tensor:
        """[modules, V, B] in [0, 1): the numbers of one step, equal in every process."""
        generator = torch.Generator().manual_seed(derive_seed(DROP_PATH_STREAM, self.seed, step))
        return torch.rand(len(self.modules), self.n_views, self.batch_size, generator=generator)

    def arm(self, step: int, places: Tensor, device: torch.device) -> None:
        """Prepare the masks of one micro-batch's two forwards: 2 global views, then the local ones."""
        if not self.modules:
            return
        numbers = self.uniform(step)[:, :, places.cpu()].to(device, non_blocking=True)  # [modules, V, b]
        self.pending = [numbers[:, :2].flatten(1), numbers[:, 2:].flatten(1)]

    def _next_group(self, _module: nn.Module, _inputs: object) -> None:
        if self.modules:
            for module, numbers in zip(self.modules, self.pending.pop(0), strict=True):
                module.uniform = numbers


def _replace_drop_path(network: nn.Module) -> list[KeyedDropPath]:
    """Swap timm's DropPath modules for keyed ones, in the network's own order."""
    replaced = []
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                keyed = KeyedDropPath(child.drop_prob)
                setattr(parent, name, keyed)
                replaced.append(keyed)
    return replaced


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
    return MultiCropNetwork(backbone, head)


def _check_crop_sizes(backbone: nn.Module, config: PretrainConfig) -> None:
    patch = getattr(getattr(backbone, "patch_embed", None), "patch_size", None)
    if patch is None:
        return
    for name in ("global_crop_size", "local_crop_size"):
        size, step = getattr(config, name), patch[0]
        if size % step:
            near = max(step, round(size / step) * step)
            raise ValueError(f"{name} is {size}, not a multiple of {config.arch}'s patch size {step}: try {near}")

"""Linear depth: padding, layers, training, continuation, and scores of each image by itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from data import DataError
from dino_dense import Backbone, load_backbone
from dino_dense.config import command_line
from dino_dense.config.presets import load_protocol
from dino_dense.distributed import World
from dino_dense.probes.depth import sig_loss
from dino_dense.probes.depth_memory import DepthMemory, patch_depths
from dino_dense.probes.depth_schedule import lr_factor, momentum
from dino_dense.probes.depth_training import (
    DepthHead,
    border_box,
    channels_of,
    depth_step,
    group_loss,
    in_pixels,
    layers_of,
    look_at_losses,
    padding_of,
    predict_depth,
    recolored,
    tokens_of,
    train_depth,
)
from dino_dense.probes.protocol import DepthProbe
from dino_dense.training.losses import PendingLosses
from tasks import RunOptions, get, run_one
from tasks.depth import DepthConfig, open_data, region
from tasks.scores.depth import garg_mask
from tests.color_backbone import ColorReader
from tests.data.test_depth import nyu
from tests.device import chosen_name
from tests.oracles import noise_backbone, stub_backbone

RANDOM = "random:vit_micro_patch8_64"
CONSTANT = 1.5
"""RMSE of the best constant for a map that has 1 m in one half and 4 m in the other."""
SMALL = {
    "steps": 40,
    "crop": (40, 60),
    "border": (0, 0, 640, 480),
    "lr": 3e-2,
    "batch_size": 4,
    "max_depth": 5.0,
    "region": "all",
}


def tree(root: Path, size: tuple[int, int] = (44, 61)) -> Path:
    """Gray levels are depths: 1 m black, 4 m white, in halves."""
    for split, count in (("train", 8), ("test", 3)):
        for index in range(count):
            near, far = (1000, 4000) if index % 2 else (4000, 1000)
            depth = np.full(size, near, np.uint16)
            depth[:, size[1] // 2 :] = far
            for folder in ("images", "depth"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            gray = ((depth - 1000) / 12).clip(0, 255).astype(np.uint8)
            Image.fromarray(gray).convert("RGB").save(root / "images" / split / f"{index}.png")
            Image.fromarray(depth).save(root / "depth" / split / f"{index}.png")
    return root


class GrayReader(ColorReader):
    """A patch's features are its mean color; so are the image's."""

    provides = frozenset({"patches", "cls"})

    def features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        patches = super().features(images)["patches"]
        return {"patches": patches, "cls": patches.mean((-2, -1))}


def gray_backbone() -> Backbone:
    return stub_backbone("gray", GrayReader())


def run(root: Path, out: Path, backbone: Backbone, **changes: object) -> dict[str, float]:
    config = DepthConfig(data=str(root), **{**SMALL, **changes})  # type: ignore[arg-type]
    options = RunOptions(ckpt=backbone.name, out=str(out), device=chosen_name())
    report = run_one(get("depth"), options, config, backbone=backbone)
    return {score.metric: score.value for score in report.scores}


@pytest.mark.parametrize(
    "changes",
    [
        {"augment": False},
        {"padding": "cut", "rotation": 0.0, "gamma": (1.0, 1.0), "brightness": (1.0, 1.0), "tint": (1.0, 1.0)},
        {"augment": False, "class_token": True, "batch_norm": False, "upsample": 2, "blocks": 4, "schedule": "dinov2"},
    ],
    ids=["kept", "fresh", "dinov2"],
)
def test_gray_levels_are_depths(tmp_path: Path, changes: dict):
    """Patches that say the depth err at the border of the halves alone; noise is no better than a constant."""
    root = tree(tmp_path / "set")
    scores = run(root, tmp_path / "out", gray_backbone(), **changes)
    assert scores["RMSE"] < CONSTANT / 2
    assert run(root, tmp_path / "noise", noise_backbone(), **changes)["RMSE"] > 0.9 * CONSTANT
    samples = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert samples["RMSE"].mean() == pytest.approx(scores["RMSE"])
    assert len(samples) == 3
    assert 0 <= scores["delta1"] <= scores["delta2"] <= scores["delta3"] <= 100
    curve = pd.read_csv(tmp_path / "out" / "curve.csv")
    assert curve["lr"].max() <= SMALL["lr"]


def kitti(root: Path) -> Path:
    """KITTI as BTS prepares it: 8 m on black, 40 m on white, and lies where no published number looks."""
    for split, count in (("train", 4), ("test", 2)):
        lines = []
        for index in range(count):
            gray, depth = np.zeros((370, 1226), np.uint8), np.full((370, 1226), 8 * 256, np.uint16)
            gray[:, 613:], depth[:, 613:] = 255, 40 * 256
            depth[::2] = 0
            depth[:18], depth[-1:], depth[:, :5] = 70 * 256, 255 * 256, 70 * 256
            image = f"2011_09_26/2011_09_26_drive_0001_sync/image_02/data/{split}{index}.png"
            truth = f"2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/{split}{index}.png"
            for path, values in ((root / "input" / image, gray), (root / "gt_depth" / truth, depth)):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
            lines += [f"{image} {truth} 721.5377", f"{image.replace('.png', 'x.png')} None 721.5377"]
        (root / f"kitti_eigen_{split}.txt").write_text("\n".join(lines))
    return root


def test_the_protocol_of_kitti(tmp_path: Path):
    """A tree as it ships is cut to KITTI's frame, trains to 80 m, and is scored in Garg's crop of the frame."""
    preset = load_protocol("depth", "dinov2_kitti_lin1")
    constants = {**preset, "steps": 100, "lr": 0.3, "batch_size": 2, "augment": False, "upsample": 1}
    config = command_line.from_recipe(DepthConfig, {**constants, "data": str(kitti(tmp_path / "kitti"))})
    splits = open_data(config)
    assert (len(splits.train), len(splits.val), splits.facts.dataset) == (4, 2, None)
    picture, truth = splits.val[0].read()
    assert (picture.size, truth.shape) == ((1216, 352), (352, 1216))
    scored = truth[region(config, truth.shape) & (truth > 0)]  # type: ignore[arg-type]
    assert set(np.unique(scored)) == {8.0, 40.0}
    options = RunOptions(ckpt="gray", out=str(tmp_path / "out"), device=chosen_name())
    report = run_one(get("depth"), options, config, backbone=gray_backbone())
    scores = {score.metric: score.value for score in report.scores}
    assert scores["RMSE"] < 8.0, "half of that of the best constant, 16 m"
    assert "dinov2_kitti_lin1" not in report.presets


def test_gray_levels_are_depths_of_their_neighbors(tmp_path: Path):
    """Nothing is trained; a patch at the border of the halves has a depth between theirs."""
    root = tree(tmp_path / "set")
    changes = {"head": "neighbors", "augment": False, "neighbors": 5, "memory_size": 80}
    assert run(root, tmp_path / "out", gray_backbone(), **changes)["RMSE"] < CONSTANT / 2
    assert run(root, tmp_path / "noise", noise_backbone(), **changes)["RMSE"] > 0.9 * CONSTANT
    assert not (tmp_path / "out" / "curve.csv").exists()
    with pytest.raises(ValueError, match="memory_size 7 is less than a patch of each of 8 images"):
        run(root, tmp_path / "none", gray_backbone(), **changes | {"memory_size": 7})
    with pytest.raises(ValueError, match="9 neighbors of a memory of 8 patches"):
        run(root, tmp_path / "few", gray_backbone(), **changes | {"memory_size": 8, "neighbors": 9})


def test_a_patch_has_the_mean_depth_of_its_measured_pixels():
    meters = torch.zeros(1, 5, 8)
    meters[0, 0, 0], meters[0, 1, 1], meters[0, 4, 7] = 2.0, 4.0, 7.0
    depths = patch_depths(meters, 4)  # padded by a row above and two below
    assert depths.shape == (1, 2, 2)
    assert depths[0].tolist() == [[pytest.approx(3.0), 0.0], [0.0, pytest.approx(7.0)]]


def test_a_memory_of_all_patches_is_that_of_a_loop():
    torch.manual_seed(0)
    features, meters = nn.functional.normalize(torch.randn(20, 6), dim=-1), 1 + torch.rand(20)
    config = DepthProbe(head="neighbors", neighbors=3, temperature=0.1)
    tokens = torch.randn(2, 6, 2, 3)
    ours = DepthMemory(features, meters, config)(tokens)
    assert ours.shape == (2, 1, 2, 3)
    for image, row, column in ((0, 0, 0), (1, 1, 2)):
        query = nn.functional.normalize(tokens[image, :, row, column], dim=0)
        values, rows = (features @ query).topk(3)
        expected = (values / 0.1).softmax(0) @ meters[rows]
        assert ours[image, 0, row, column] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(("size", "patch"), [((480, 640), 14), ((44, 61), 8), ((16, 16), 8)])
def test_padding_is_around_the_middle_and_cut_again(size: tuple[int, int], patch: int):
    padding = padding_of(size, patch)
    image = torch.rand(1, 3, *size)
    padded = nn.functional.pad(image, padding)
    assert padded.shape[-2] % patch == padded.shape[-1] % patch == 0
    assert padded.shape[-2] - size[0] < patch
    assert abs(padding.left - padding.right) <= 1
    assert abs(padding.top - padding.bottom) <= 1
    assert torch.equal(padding.cut(padded), image)


def test_layers_and_channels():
    backbone = load_backbone(RANDOM)
    depth = backbone.depth
    assert layers_of(backbone, DepthProbe()) == (-1,)
    assert layers_of(backbone, DepthProbe(blocks=4))[-1] == depth - 1
    with pytest.raises(ValueError, match=f"has {depth} layers"):
        layers_of(backbone, DepthProbe(blocks=depth + 1))
    with pytest.raises(ValueError, match="the head joins 4 blocks"):
        layers_of(backbone.with_layers((0, -1)), DepthProbe(blocks=4))
    config = DepthProbe(blocks=2, class_token=True)
    tokens = tokens_of(backbone, torch.rand(2, 3, 16, 24), config)
    assert tokens.shape == (2, channels_of(backbone, config), 2, 3)
    patches = backbone.extract(torch.rand(1, 3, 16, 16)).patches
    assert patches.shape[1] == channels_of(backbone, DepthProbe())


def test_four_layers_are_those_of_dinov2():
    """Of 12, 24 and 40 layers, counted from 0 here."""

    class Deep:
        name, layers = "deep", (-1,)

        def __init__(self, depth: int) -> None:
            self.depth = depth

    chosen = {depth: layers_of(Deep(depth), DepthProbe(blocks=4)) for depth in (12, 24, 40, 32)}  # type: ignore[arg-type]
    assert chosen == {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39), 32: (7, 15, 23, 31)}


def test_the_mirror_image_is_averaged():
    backbone = load_backbone(RANDOM)
    torch.manual_seed(0)
    head = DepthHead(backbone.embed_dim, DepthProbe()).eval()
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 56, 3), np.uint8))
    mirrored = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    once = DepthProbe(flip=False)
    both = [predict_depth(backbone, head, image, once) for image in (picture, mirrored)]
    mean = (both[0] + both[1][:, ::-1]) / 2
    np.testing.assert_allclose(predict_depth(backbone, head, picture, DepthProbe()), mean, atol=1e-4)


def test_learning_rates_rise_in_the_warm_up_of_a_cosine_over_all_steps():
    """DINOv3's and DINOv2's are half a cosine of all steps, which is at three quarters after a third of them."""
    for schedule, final in (("dinov3", 4e-5), ("dinov2", 1e-8)):
        config = DepthProbe(schedule=schedule, final=final)  # type: ignore[arg-type]
        factors = [lr_factor(step, config) for step in range(config.steps)]
        assert factors[0] == pytest.approx(1e-3)
        assert max(factors) == pytest.approx(0.75, abs=2e-3)
        assert abs(int(np.argmax(factors)) - 12_800) <= 1
        assert factors[6400] == pytest.approx(0.5 * (1 + np.cos(np.pi / 6)) / 2, abs=2e-3)
        assert factors[25_600] == pytest.approx(0.25, abs=1e-3)
        assert final <= factors[-1] < 1.1 * final + 2e-9
    short = DepthProbe(steps=300)
    peak = int(np.argmax([lr_factor(step, short) for step in range(300)]))
    assert abs(peak - 100) <= 1, "the warm-up is a third at most"


def test_beta1_is_nothing_in_the_warm_up_of_dinov3_and_swings_in_dinov2():
    ours = [momentum(step, DepthProbe()) for step in (0, 12_799, 12_800, 25_600, 38_399)]
    np.testing.assert_allclose(ours, [0, 0, 0.85, 0.9, 0.95], atol=1e-6)
    swing = [momentum(step, DepthProbe(schedule="dinov2")) for step in (0, 5759, 11_519, 11_520, 38_399)]
    np.testing.assert_allclose(swing, [0.95, 0.9, 0.85, 0.85, 0.95], atol=1e-4)
    for steps in (1, 2, 3, 5):
        for schedule in ("dinov2", "dinov3"):
            config = DepthProbe(steps=steps, schedule=schedule)  # type: ignore[arg-type]
            assert all(0 <= momentum(step, config) <= 0.9501 for step in range(steps))
            assert all(0 < lr_factor(step, config) <= 1 for step in range(steps))


def test_a_loss_is_of_the_images_of_a_group_and_blank_maps_count_not():
    torch.manual_seed(0)
    ours, truth = 1 + torch.rand(6, 4, 5), 1 + torch.rand(6, 4, 5)
    config = DepthProbe(loss_images=2)
    parts = [sig_loss(ours[i : i + 2], truth[i : i + 2], 10.0) for i in (0, 2, 4)]
    loss, groups = group_loss(ours, truth, config, warm_up=False)
    assert (loss, groups) == (pytest.approx(sum(parts).item() / 3), 3)
    truth[2:4] = 0
    loss, groups = group_loss(ours.requires_grad_(), truth, config, warm_up=False)
    assert (loss.item(), groups) == (pytest.approx((parts[0] + parts[2]).item() / 2), 2)
    loss.backward()
    assert ours.grad is not None
    assert ours.grad[0].all()
    assert not ours.grad[2:4].any()
    assert group_loss(ours, torch.zeros_like(truth), config, warm_up=False) == (0, 0)


@pytest.mark.parametrize("warm_up", [True, False])
def test_a_loss_by_sums_is_that_of_the_pixels_with_a_depth(warm_up: bool):
    """Value and slope, also where pixels without depth have predictions whose logarithm is no number."""
    generator = torch.Generator().manual_seed(0)
    ours, truth = torch.rand(3, 20, 30, generator=generator) * 9, torch.rand(3, 20, 30, generator=generator) * 12
    truth[truth < 3] = 0
    valid = (truth > 0) & (truth <= 10)
    ours[~valid] = torch.tensor([-1.0, -1e-3, 0.0, torch.nan]).repeat(1 + int((~valid).sum()) // 4)[: (~valid).sum()]
    chosen = ours[valid].clone().requires_grad_()
    g = (chosen + 1e-3).log() - (truth[valid] + 1e-3).log()
    expected = ((0 if warm_up else g.var()) + 0.15 * g.mean().square()).sqrt()
    loss = sig_loss(ours.requires_grad_(), truth, 10.0, warm_up=warm_up)
    torch.testing.assert_close(loss, expected)
    (slope,) = torch.autograd.grad(loss, ours)
    torch.testing.assert_close(slope[valid], torch.autograd.grad(expected, chosen)[0])
    assert not slope[~valid].any()
    assert sig_loss(ours, torch.zeros_like(truth), 10.0).isnan()


def test_the_exponent_is_of_colors_up_to_255():
    image = torch.tensor([0.0, 0.2, 1.0]).view(1, 1, 3).expand(3, 1, 3)
    ours = recolored(image, torch.tensor(0.9), torch.tensor(1.25), torch.tensor([1.0, 0.5, 2.0]).view(3, 1, 1))
    expected = [[min(255, (255 * v) ** 0.9 * 1.25 * tint) / 255 for v in (0.0, 0.2, 1.0)] for tint in (1, 0.5, 2)]
    np.testing.assert_allclose(ours[:, 0].numpy(), expected, atol=1e-6)


def test_padding_is_stretched_or_cut():
    """A ramp over the padded columns: stretched, all of it is in the image; cut, its ends are not."""
    ramp = torch.linspace(1, 9, 8).view(1, 1, 1, 8).expand(1, 1, 6, 8)
    size, patch = (44, 57), 8
    kept = in_pixels(ramp, size, patch, DepthProbe())
    cut = in_pixels(ramp, size, patch, DepthProbe(padding="cut"))
    assert kept.shape == cut.shape == (1, 1, *size)
    assert kept.min() == 1
    assert cut.max() < kept.max()
    whole = (48, 64)
    assert torch.equal(
        in_pixels(ramp, whole, patch, DepthProbe()), in_pixels(ramp, whole, patch, DepthProbe(padding="cut"))
    )


def test_boxes_and_regions():
    rows, columns = border_box((43, 45, 608, 472), (480, 640))
    assert (rows, columns) == (slice(45, 472), slice(43, 608))
    assert border_box((0, 0, 640, 480), (30, 40)) == (slice(0, 30), slice(0, 40))
    mask = garg_mask((352, 1216))
    assert (np.flatnonzero(mask.any(1))[[0, -1]] == [143, 348]).all()
    assert (np.flatnonzero(mask.any(0))[[0, -1]] == [43, 1171]).all()


@pytest.mark.parametrize(
    ("tokens", "meters", "message"),
    [
        (torch.nan, 1.0, "loss of the depth head is nan in step 2:"),
        (0.5, 0.0, "no pixel of step 2 has a depth between 0 and 10.0 m: check the unit"),
    ],
)
def test_tokens_that_are_no_numbers_and_maps_without_depth_stop_the_training(
    tokens: float, meters: float, message: str
):
    config, pending = DepthProbe(), PendingLosses()
    head = DepthHead(4, config)
    optimizer = torch.optim.AdamW(head.parameters())
    for step, (value, depth) in enumerate([(0.5, 1.0), (tokens, meters), (0.5, 1.0)], start=1):
        given = torch.full((2, 4, 2, 2), value), torch.full((2, 16, 16), depth)
        loss, groups = depth_step(head, optimizer, *given, config, 8, 0)
        pending.add(step, loss, loss / groups)
    with pytest.raises(ValueError, match=message):
        look_at_losses(pending, config)


def test_a_stopped_run_goes_on_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dino_dense.probes.depth_training.SAVE_SECONDS", 0.0)
    root = tree(tmp_path / "set")
    config = DepthConfig(data=str(root), **{**SMALL, "steps": 8})  # type: ignore[arg-type]
    splits, backbone = open_data(config), load_backbone(RANDOM)

    def train(name: str) -> tuple[nn.Module, pd.DataFrame]:
        (tmp_path / name).mkdir(exist_ok=True)
        state = tmp_path / name / "last.safetensors"
        return train_depth(backbone, config, splits.train, state=state, world=World(), seed=0, workers=0)

    whole, log = train("whole")
    count: list[int] = []

    def stopping(*arguments):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return depth_step(*arguments)

    monkeypatch.setattr("dino_dense.probes.depth_training.depth_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train("stopped")
    monkeypatch.setattr("dino_dense.probes.depth_training.depth_step", depth_step)
    resumed, again = train("stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    pd.testing.assert_frame_equal(log, again)


def test_bad_data_is_refused_before_anything_runs(tmp_path: Path):
    root = nyu(tmp_path / "nyu")
    config = DepthConfig(data=str(root))
    assert [len(part) for part in (open_data(config).train, open_data(config).val)] == [2, 1]
    with pytest.raises(DataError, match="above the highest of 10 m"):
        open_data(replace(config, unit=1.0))
    with pytest.raises(DataError, match=r"nyu_val\.txt: no such list"):
        open_data(replace(config, split="val"))
    for changes in ({"bins": 0}, {"min_depth": 20.0}, {"gamma": (1.1, 0.9)}, {"crop": (0, 5)}, {"steps": 0}):
        with pytest.raises(ValueError, match="expected"):
            DepthConfig(**changes)

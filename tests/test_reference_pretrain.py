"""Losses, masks and learning rates of pretraining: the numbers of the published implementations, by public functions.

Every size and parameter is read from the files, so the same tests run on another folder of them.
"""

import json
import math
import random

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp

from dino_dense.backbone.dino_vit import build_module
from dino_dense.pretrain.head import DINOHead
from dino_dense.pretrain.masking import BatchMasks, block_mask, fill_up, random_mask
from dino_dense.pretrain.objectives.dino import DINOLoss
from dino_dense.pretrain.objectives.gram import at_grid, gram_loss
from dino_dense.pretrain.objectives.ibot import patch_loss, patch_weights
from dino_dense.pretrain.objectives.koleo import koleo_loss
from dino_dense.pretrain.objectives.paka import kernel_alignment_loss
from dino_dense.pretrain.optim import lr_multiplier, param_groups
from dino_dense.pretrain.targets import Center, sinkhorn
from dino_dense.training.schedules import warmup_cosine
from tests.device import chosen
from tests.reference_files import reference

Arrays = dict[str, np.ndarray]


def tensor(arrays: Arrays, key: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(arrays[key])).to(chosen())


def leaf(arrays: Arrays, key: str) -> torch.Tensor:
    return tensor(arrays, key).requires_grad_()


def assert_relative(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (ours.detach() - theirs).abs().max() <= tolerance * theirs.abs().max()


def assert_loss(loss: torch.Tensor, arrays: Arrays, case: str, student: torch.Tensor) -> None:
    """A loss and its gradient."""
    assert_relative(loss, tensor(arrays, f"{case}.loss"))
    assert_relative(torch.autograd.grad(loss, student)[0], tensor(arrays, f"{case}.grad"))


def cases(arrays: Arrays, kind: str) -> list[str]:
    numbers = {key.split(".")[1] for key in arrays if key.startswith(f"{kind}.")}
    return [f"{kind}.{number}" for number in sorted(numbers) if number.isdecimal()]


def test_ibot_patch_loss_with_a_center(device: torch.device):
    arrays = reference("ibot_loss")
    center = Center(int(arrays["patch_dim"]), float(arrays["center_momentum"])).to(device)
    for case in cases(arrays, "center"):
        torch.testing.assert_close(center.center[0], tensor(arrays, f"{case}.center_used"), rtol=0, atol=1e-6)
        teacher, student = tensor(arrays, f"{case}.teacher"), leaf(arrays, f"{case}.student")
        masks = tensor(arrays, f"{case}.masks")
        targets = center.targets(teacher, float(arrays[f"{case}.teacher_temp"]))
        torch.testing.assert_close(targets, tensor(arrays, f"{case}.targets"), rtol=0, atol=1e-6)
        weights = patch_weights(masks)
        torch.testing.assert_close(weights, tensor(arrays, f"{case}.masks_weight"))
        loss = patch_loss(student, targets, weights, len(masks), float(arrays["student_temp"]))
        assert_loss(loss, arrays, case, student)
        center.move(teacher.sum(dim=0), torch.tensor(float(len(teacher)), device=device))
    torch.testing.assert_close(center.center[0], tensor(arrays, "center.center_final"), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("device")
def test_ibot_patch_loss_with_sinkhorn():
    arrays = reference("ibot_loss")
    for case in cases(arrays, "sinkhorn"):
        temperature, iterations = float(arrays[f"{case}.teacher_temp"]), int(arrays[f"{case}.iterations"])
        targets = sinkhorn(tensor(arrays, f"{case}.teacher"), temperature, iterations)
        torch.testing.assert_close(targets, tensor(arrays, f"{case}.targets"), rtol=0, atol=1e-6)
        student, masks = leaf(arrays, f"{case}.student"), tensor(arrays, f"{case}.masks")
        loss = patch_loss(student, targets, patch_weights(masks), len(masks), float(arrays["student_temp"]))
        assert_loss(loss, arrays, case, student)


@pytest.mark.usefixtures("device")
def test_ibot_patch_loss_of_all_patches_and_a_mask():
    arrays = reference("ibot_loss")
    masks, student = tensor(arrays, "dense.masks"), leaf(arrays, "dense.student")
    weights, temperature = patch_weights(masks), float(arrays["student_temp"])
    loss = patch_loss(student[masks], tensor(arrays, "dense.targets")[masks], weights, len(masks), temperature)
    assert_loss(loss, arrays, "dense", student)


def test_the_original_ibot_loss(device: torch.device):
    """The center of the patches is the mean over all of them there."""
    arrays = reference("ibot_loss")
    temperature, momentum = float(arrays["student_temp"]), float(arrays["center_momentum"])
    out_dim, views = arrays["ibot.0.student_cls"].shape[1], 2 + int(arrays["ibot.n_local"])
    dino = DINOLoss(out_dim, views, 0.04, 0.07, 30, temperature, momentum).to(device)
    center = Center(int(arrays["patch_dim"]), momentum).to(device)
    for case in cases(arrays, "ibot"):
        cls, local, patches = (leaf(arrays, f"{case}.student_{name}") for name in ("cls", "local_cls", "patch"))
        output = dino(torch.cat([cls, local]), tensor(arrays, f"{case}.teacher_cls"), int(arrays[f"{case}.epoch"]))
        masks = tensor(arrays, f"{case}.masks").flatten(0, 1).flatten(1)
        scores = tensor(arrays, f"{case}.teacher_patch").flatten(0, 1)
        targets = center.targets(scores, float(arrays[f"{case}.teacher_temp"])).view(patches.shape)
        loss = patch_loss(patches[masks], targets[masks], patch_weights(masks), len(masks), temperature)
        for ours, name in ((output.loss, "loss_cls"), (loss, "loss_patch"), (output.loss + loss, "loss")):
            assert_relative(ours, tensor(arrays, f"{case}.{name}"))
        gradients = torch.autograd.grad(output.loss + loss, (cls, patches, local))
        for gradient, name in zip(gradients, ("cls", "patch", "local_cls"), strict=True):
            assert_relative(gradient, tensor(arrays, f"{case}.grad_{name}"))
        dino.update_center(output.teacher_mean)
        center.move(scores.sum(dim=0), torch.tensor(float(len(scores)), device=device))
        torch.testing.assert_close(dino.center[0], tensor(arrays, f"{case}.center_after"), rtol=0, atol=1e-6)
        torch.testing.assert_close(center.center[0], tensor(arrays, f"{case}.center2_after"), rtol=0, atol=1e-6)


def test_dino_loss_of_dinov2_with_sinkhorn_and_with_a_center(device: torch.device):
    arrays = reference("ibot_loss")
    out_dim, views = arrays["dino.0.teacher"].shape[1], 2 + int(arrays["dino.n_local"])
    loss: DINOLoss | None = None
    for case in cases(arrays, "dino"):
        by_sinkhorn, temperature = str(arrays[f"{case}.mode"]) == "sinkhorn", float(arrays[f"{case}.teacher_temp"])
        before = loss.center if loss is not None and not by_sinkhorn else None
        targets = "sinkhorn" if by_sinkhorn else "center"
        loss = DINOLoss(out_dim, views, temperature, temperature, 0, float(arrays["student_temp"]), targets=targets)
        loss.to(device)
        if before is not None:
            loss.center = before
        student = [leaf(arrays, f"{case}.student_{name}") for name in ("global", "local")]
        teacher = tensor(arrays, f"{case}.teacher")
        ours = loss.teacher_targets(teacher, 0)[0]
        torch.testing.assert_close(ours, tensor(arrays, f"{case}.targets"), rtol=0, atol=1e-6)
        output = loss(torch.cat(student), teacher, 0)
        assert_relative(output.loss, tensor(arrays, f"{case}.loss_total"))
        assert_relative(output.loss, tensor(arrays, f"{case}.dinov2_loss_total"))
        for gradient, name in zip(torch.autograd.grad(output.loss, student), ("global", "local"), strict=True):
            assert_relative(gradient, tensor(arrays, f"{case}.grad_{name}"))
        if not by_sinkhorn:
            loss.update_center(output.teacher_mean)
    assert loss is not None
    torch.testing.assert_close(loss.center[0], tensor(arrays, "dino.center_final"), rtol=0, atol=1e-6)


@pytest.mark.usefixtures("device")
def test_koleo():
    arrays = reference("koleo")
    topks = {key.split(".")[0]: int(key.split(".")[0].removeprefix("topk")) for key in arrays if key.startswith("topk")}
    for case in [*cases(arrays, "koleo"), *topks]:
        rows = leaf(arrays, f"{case}.x")
        assert_loss(koleo_loss(rows, topks.get(case, 1)), arrays, case, rows)
    assert_relative(koleo_loss(tensor(arrays, "duplicate.x")), tensor(arrays, "duplicate.loss"), 1e-4)


@pytest.mark.usefixtures("device")
def test_gram():
    arrays = reference("gram")
    for case in map(str, range(int(arrays["cases"]))):
        removed = {"remove_neg": "drop", "remove_only_teacher_neg": "drop_teacher"}
        negatives = next((name for key, name in removed.items() if arrays[f"{case}.{key}"]), "keep")
        student = leaf(arrays, "student")
        loss = gram_loss(
            student,
            tensor(arrays, "teacher"),
            normalize=bool(arrays[f"{case}.apply_norm"]),
            negatives=negatives,  # type: ignore[arg-type]
            per_image=bool(arrays[f"{case}.img_level"]),
        )
        assert_loss(loss, arrays, case, student)
    student = leaf(arrays, "flat.student")
    assert_loss(gram_loss(student, tensor(arrays, "flat.teacher"), per_image=False), arrays, "flat", student)
    grids = (tuple(map(int, arrays[f"resize.grid_{name}"])) for name in ("in", "out"))
    assert_relative(at_grid(tensor(arrays, "resize.x"), *grids), tensor(arrays, "resize.y"))  # type: ignore[arg-type]


@pytest.mark.usefixtures("device")
def test_patch_kernel_alignment():
    arrays = reference("patch_kernel_alignment")
    for case in sorted({key.split(".")[0] for key in arrays} - {"eps"}):
        student = leaf(arrays, f"{case}.student")
        ignore = tensor(arrays, f"{case}.ignore") if f"{case}.ignore" in arrays else None
        loss = kernel_alignment_loss(student, tensor(arrays, f"{case}.teacher"), ignore)
        assert_loss(loss, arrays, case, student)


# --- masking ---


def neighbor_share(mask: np.ndarray) -> float:
    """Share of a masked patch's four neighbors that are masked; outside counts as not."""
    padded = np.pad(mask, 1).astype(float)
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return float(around[mask].mean() / 4)


def assert_alike(masks: list[np.ndarray], arrays: Arrays, case: str) -> None:
    """Statistics within 4 joint standard errors of the reference's."""
    counts = np.array([mask.sum() for mask in masks])
    assert ks_2samp(counts, arrays[f"{case}.count"], method="asymp").pvalue > 1e-3
    columns = {
        "neighbour_share": (np.array([neighbor_share(mask) for mask in masks if mask.any()]), "_mean"),
        "row_profile": (np.array([mask.mean(axis=1) for mask in masks]), ""),
        "col_profile": (np.array([mask.mean(axis=0) for mask in masks]), ""),
    }
    for name, (values, suffix) in columns.items():
        error = np.hypot(values.std(axis=0) / math.sqrt(len(values)), arrays[f"{case}.{name}_se"])
        assert (np.abs(values.mean(axis=0) - arrays[f"{case}.{name}{suffix}"]) <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("style", ["dinov2", "dinov3"])
def test_block_masks(style: str):
    arrays = reference("masking")
    grid, rng = tuple(map(int, arrays["grid"])), random.Random(0)
    sizes = {"smallest": int(arrays["min_num_patches"]), "largest": int(arrays["max_num_patches"])}
    for number, target in enumerate(map(int, arrays["targets"])):
        masks = [block_mask(grid, target, rng, **sizes) for _ in range(int(arrays["runs"]))]  # type: ignore[arg-type]
        assert max(mask.sum() for mask in masks) <= target
        if style == "dinov3":
            masks = [fill_up(mask, target, rng) for mask in masks]
            assert {int(mask.sum()) for mask in masks} == {target}
        assert_alike(masks, arrays, f"{style}.target{number}")


def test_block_masks_of_ibot():
    arrays = reference("masking")
    height, width = map(int, arrays["grid"])
    rng = random.Random(0)
    for case in sorted({key.split(".")[0] for key in arrays if key.startswith("ibot_fixed")}):
        count, smallest = float(arrays[f"{case}.ratio"]) * height * width, (min(height, width) // 3) ** 2
        runs = len(arrays[f"{case}.count"])
        assert_alike([block_mask((height, width), count, rng, smallest=smallest) for _ in range(runs)], arrays, case)


def test_random_masks_are_exact_and_even():
    masks = [random_mask((5, 4), 7, random.Random(seed)) for seed in range(2000)]
    assert {int(mask.sum()) for mask in masks} == {7}
    assert np.abs(np.mean(masks, axis=0) - 7 / 20).max() < 4 * math.sqrt(0.35 * 0.65 / 2000)


@pytest.mark.parametrize("style", ["dinov2", "dinov3"])
def test_the_masks_of_a_batch(style: str):
    arrays = reference("masking")
    grid, crops, runs = tuple(map(int, arrays["grid"])), 2 * int(arrays["collate.batch"]), 200
    masks = BatchMasks(grid, crops, 0.5, (0.1, 0.5), style, seed=0)  # type: ignore[arg-type]
    counts = np.array([sorted(masks.draw(step, list(range(crops))).sum(dim=1).tolist()) for step in range(runs)])
    error = np.hypot(counts.std(axis=0) / math.sqrt(runs), arrays[f"collate.{style}.sorted_counts_se"])
    difference = np.abs(counts.mean(axis=0) - arrays[f"collate.{style}.sorted_counts_mean"])
    assert (difference <= 4 * error + 1e-9).all()
    assert set((counts > 0).sum(axis=1)) == set(arrays[f"collate.{style}.masked_images"].tolist())
    some = masks.draw(3, [5, 0, 9])
    assert torch.equal(some, masks.draw(3, list(range(crops)))[[5, 0, 9]])


# --- learning rates ---


BACKBONES = ["dinov2.backbone", "dinov2.backbone_chunked", "dinov3.backbone_mlp", "dinov3.backbone_swiglu"]


@pytest.mark.parametrize("case", [*BACKBONES, "dinov2.dino_head"])
def test_learning_rates_of_layers(case: str):
    arrays = reference("lr_decay")
    decay, patch_embed = float(arrays["layerwise_decay"]), float(arrays["patch_embed_lr_mult"])
    for name, (lr, _, _) in json.loads(str(arrays[case])).items():
        assert lr_multiplier(name, int(arrays["depth"]), decay, patch_embed) == pytest.approx(lr, rel=1e-12), name


@pytest.mark.parametrize("case", ["dinov2.backbone", "dinov2.dino_head"])
def test_weight_decay_of_parameters(case: str):
    arrays = reference("lr_decay")
    module = DINOHead(6, 7, 8, 4, norm_last_layer=False) if "head" in case else build_module("vit_small_patch16_224")
    expected = json.loads(str(arrays[case]))
    decayed = {id(p) for group in param_groups(module) if group["decay"] for p in group["params"]}
    parameters = {name: id(p) for name, p in module.named_parameters() if name in expected}
    assert len(parameters) >= 0.7 * len(expected)
    for name, parameter in parameters.items():
        assert (parameter in decayed) == bool(expected[name][1]), name


def test_schedules_of_dinov2():
    arrays = reference("dinov2_schedules")
    for case in cases(arrays, "cosine"):
        base, final, total, warmup, start, freeze = arrays[f"{case}.args"]
        ours = warmup_cosine(base, final, int(total), int(warmup), start, freeze=int(freeze))
        np.testing.assert_allclose(ours, arrays[f"{case}.values"], rtol=1e-12, atol=1e-15)
    length, epochs = int(arrays["epoch_length"]), int(arrays["epochs"])
    peak = float(arrays["base_lr"]) * math.sqrt(int(arrays["global_batch"]) / 1024)
    warmup = int(arrays["warmup_epochs"]) * length
    schedules = {
        "lr": warmup_cosine(peak, float(arrays["min_lr"]), epochs * length, warmup),
        "wd": warmup_cosine(float(arrays["weight_decay"]), float(arrays["weight_decay_end"]), epochs * length),
        "momentum": warmup_cosine(
            float(arrays["momentum_teacher"]), float(arrays["final_momentum_teacher"]), epochs * length
        ),
    }
    inside = arrays["iteration"] < epochs * length
    for name, schedule in schedules.items():
        expected = arrays[name][inside]
        np.testing.assert_allclose(schedule[arrays["iteration"][inside]], expected, rtol=1e-12, atol=1e-15)

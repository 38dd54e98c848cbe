"""Student and teacher: groups of crops, keyed drop path, starting weights."""

import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch

from dino_dense.pretrain.network import DropPathKeys, MultiCropNetwork, build_network, compile_blocks, teacher_of
from dino_dense.training.drop_path import KeyedDropPath, scales
from tests.pretrain.tiny_run import TINY


def crops(n: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def networks(**changes: Any) -> tuple[MultiCropNetwork, MultiCropNetwork]:
    config = replace(TINY, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        student = build_network(config, config)
    return student, teacher_of(student)


def keys_of(student: MultiCropNetwork) -> DropPathKeys:
    return DropPathKeys(student, TINY.n_views, TINY.batch_size, TINY.seed)


def test_networks_begin_equal_and_only_the_student_learns_and_drops_paths():
    student, teacher = networks()
    for (name, a), (other, b) in zip(student.state_dict().items(), teacher.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    assert not any(p.requires_grad for p in teacher.parameters())
    keys_of(student)
    rates = [1 - m.keep_prob for m in student.modules() if isinstance(m, KeyedDropPath)]
    assert rates == pytest.approx([0.1, 0.1, 0.2, 0.2, 0.3, 0.3])  # linear with depth, two in each block
    assert not keys_of(teacher).modules


def test_weights_come_from_the_seed():
    torch.manual_seed(1)
    a, _ = networks()
    torch.manual_seed(2)
    b, _ = networks()
    c, _ = networks(seed=1)
    weight = "backbone.blocks.0.attn.qkv.weight"
    assert torch.equal(a.state_dict()[weight], b.state_dict()[weight])
    assert not torch.equal(a.state_dict()[weight], c.state_dict()[weight])


def test_features_are_view_major_over_the_groups():
    _, teacher = networks()
    groups = [crops(4, 32, 0), crops(6, 16, 1)]
    views = teacher(groups)
    assert views.cls.shape == (10, teacher.backbone.num_features)
    assert views.patches is None
    torch.testing.assert_close(views.cls[6:7], teacher([groups[1][2:3]]).cls, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pack", [False, True])
def test_patch_tokens_are_those_of_the_global_crops(pack: bool):
    student, _ = networks(drop_path_rate=0.0, pack=pack)
    groups = [crops(4, 32, 0), crops(6, 16, 1)]
    plain = student(groups).cls
    student.needs_patches = True
    views = student(groups)
    torch.testing.assert_close(views.cls, plain, rtol=1e-4, atol=1e-5)
    assert views.patches is not None
    expected = student.backbone.forward_features(groups[0])[:, 1:]
    torch.testing.assert_close(views.patches, expected, rtol=1e-4, atol=1e-5)


def test_a_network_without_patch_tokens_is_refused():
    config = replace(TINY, arch="resnet18")
    with pytest.raises(ValueError, match=r"learns patch tokens, but resnet18 .* choose such an --arch"):
        build_network(config, config, needs_patches=True)


def student_features(slots: list[int], step: int = 3) -> torch.Tensor:
    """[views, images, C] of the images at these slots of the batch, in one forward."""
    student, _ = networks()
    keys = keys_of(student)
    keys.set_masks(step, torch.tensor(slots), torch.device("cpu"))
    groups = []
    for size, first, views in ((32, 0, 2), (16, 2, 2)):
        whole = torch.stack([crops(8, size, first + view) for view in range(views)])  # [views, B, ...]
        groups.append(whole[:, slots].flatten(0, 1))
    return student(groups).cls.unflatten(0, (4, len(slots)))


def test_a_split_batch_drops_the_same_paths():
    whole = student_features(list(range(8)))
    halves = torch.cat([student_features([0, 1, 2, 3]), student_features([4, 5, 6, 7])], dim=1)
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-5)
    other_step = student_features(list(range(8)), step=4)
    assert (other_step - whole).abs().max() > 1e-3


@pytest.mark.parametrize(("arch", "dropped"), [("resnet50", 0), ("xcit_nano_12_p16_224", 36)])
def test_paths_are_dropped_in_transformers_alone(arch: str, dropped: int):
    """main_dino.py hands its drop_path_rate to ViTs and XCiT; torchvision's networks never see it."""
    student, _ = networks(arch=arch, global_crop_size=32, local_crop_size=16, drop_path_rate=0.1)
    rates = [module.keep_prob for module in keys_of(student).modules]
    assert sum(rate < 1 for rate in rates) == pytest.approx(dropped, abs=2)


def test_the_class_token_starts_as_dinos():
    """trunc_normal_(std=.02) in vision_transformer.py; timm draws 1e-6."""
    student, teacher = networks(arch="vit_small_patch16_224", global_crop_size=32, local_crop_size=16)
    assert student.backbone.cls_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert torch.equal(student.backbone.cls_token, teacher.backbone.cls_token)


@pytest.mark.parametrize("changes", [{}, {"positions": "rotary", "layer_scale": True}], ids=["table", "rotary"])
@pytest.mark.parametrize("recomputes", [False, True])
def test_branches_of_the_kept_crops_alone_give_the_same_numbers(changes: dict[str, Any], recomputes: bool):
    """At a rate of 0.9 some branches keep no crop at all."""
    results, rows = [], []
    for skip in (False, True):
        student, _ = networks(drop_path_rate=0.9, **changes)
        keys = DropPathKeys(student, TINY.n_views, TINY.batch_size, TINY.seed, skip_dropped=skip)
        if recomputes:
            student.recompute_blocks("vit_micro")
        keys.set_masks(0, torch.arange(3), torch.device("cpu"))
        assert any(not len(module.nonzero()) for group in keys.pending for module in group)
        student.backbone.blocks[-1].attn.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        features = student([crops(6, 32, 0), crops(6, 16, 1)]).cls
        features.square().sum().backward()
        results.append([features.detach(), *(p.grad for p in student.parameters() if p.grad is not None)])
    assert len(results[0]) == len(results[1]) > 40
    for whole, kept in zip(*results, strict=True):
        torch.testing.assert_close(kept, whole, rtol=1e-4, atol=1e-5)
    half = len(rows) // 2
    assert rows[:half] == [6] * half
    assert max(rows[half:]) < 6


def test_skipping_dropped_crops_is_refused_where_it_cannot_be():
    for other in ("compile", "pack"):
        with pytest.raises(ValueError, match="skip_dropped is on with compile or pack"):
            replace(TINY, skip_dropped=True, **{other: True})
    student, _ = networks(arch="xcit_nano_12_p16_224", global_crop_size=32, local_crop_size=16)
    with pytest.raises(ValueError, match="skip_dropped is on, but the network is no plain vision transformer"):
        DropPathKeys(student, TINY.n_views, TINY.batch_size, TINY.seed, skip_dropped=True)


def test_drop_path_drops_rows_at_its_rate_and_keeps_the_mean():
    module = KeyedDropPath(0.3)
    module.scale = scales([module], torch.rand(1, 20000, generator=torch.Generator().manual_seed(0)))[0]
    out = module(torch.ones(20000, 2, 3))
    rows = out.flatten(1)
    assert ((rows == rows[:, :1]).all(dim=1)).all()
    assert (rows[:, 0] == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)


def test_drop_path_without_numbers_is_an_error_not_a_silent_default():
    with pytest.raises(RuntimeError, match="no random numbers for this batch"):
        KeyedDropPath(0.1)(torch.ones(1, 1))


def test_a_crop_size_that_the_patch_does_not_divide_is_named_with_a_near_one():
    with pytest.raises(ValueError, match=r"local_crop_size is 18: expected a multiple of .* patch size 8, such as 16"):
        networks(local_crop_size=18)


def test_packed_crops_give_the_same_features_and_gradients():
    results = []
    for pack in (False, True):
        student, _ = networks(pack=pack)
        keys_of(student).set_masks(3, torch.arange(8), torch.device("cpu"))
        features = student([crops(16, 32, 0), crops(16, 16, 1)]).cls
        (features[:, ::2].square().sum() / 100).backward()
        results.append([features, *(p.grad for p in student.parameters() if p.grad is not None)])
    for plain, packed in zip(*results, strict=True):
        torch.testing.assert_close(packed, plain, rtol=1e-4, atol=1e-5)


def test_only_our_vits_can_be_packed():
    with pytest.raises(ValueError, match="pack is on, but resnet18"):
        networks(arch="resnet18", pack=True)
    with pytest.raises(ValueError, match="compile and pack are both on"):
        replace(TINY, pack=True, compile=True)


def test_convolutions_are_channels_last():
    student, _ = networks(arch="resnet18")
    weight = student.backbone.layer4[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    vit, _ = networks()
    assert vit.backbone.patch_embed.proj.weight.is_contiguous()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU (no g++)")
def test_compiled_blocks_give_the_same_features_and_gradients():
    results = []
    for compiled in (False, True):
        student, _ = networks()
        keys = keys_of(student)
        if compiled:
            compile_blocks(student)
        for step in (3, 4):  # new masks are no new compilation's constants
            student.zero_grad()
            keys.set_masks(step, torch.arange(8), torch.device("cpu"))
            features = student([crops(16, 32, 0), crops(16, 16, 1)]).cls
            (features[:, ::2].square().sum() / 100).backward()
        results.append([features, *(p.grad for p in student.parameters() if p.grad is not None)])
        assert sorted(student.state_dict()) == sorted(networks()[0].state_dict())
    for plain, ours in zip(*results, strict=True):
        assert (ours - plain).norm() <= 1e-5 * plain.norm()


def test_one_compilation_serves_all_blocks_also_with_drop_path():
    """Three graphs: of the student for global and for local crops, of the teacher for global crops."""
    graphs: list[object] = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    try:
        student, teacher = networks(drop_path_rate=0.3)
        keys = keys_of(student)
        keys.make_blocks_alike(student)
        for network in (student, teacher):
            compile_blocks(network, backend=counting)
        groups = [crops(16, 32, 0), crops(16, 16, 1)]
        for step in range(2):
            keys.set_masks(step, torch.arange(TINY.batch_size), torch.device("cpu"))
            student.train()(groups).cls.sum().backward()
            with torch.no_grad():
                teacher(groups[:1])
    finally:
        torch._dynamo.reset()
    assert len(graphs) == 3

"""The interface every task relies on."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from dino_dense import load_backbone
from dino_dense.backbone import Backbone
from dino_dense.backbone.dino_vit import DinoViT, ViTShape, build_module, describe, resample, resample_by_matrices
from dino_dense.checkpoint import CheckpointError, write_tensors


@pytest.fixture
def backbone(tiny_vit: DinoViT) -> Backbone:
    return Backbone(tiny_vit, name="tiny", sha256="")


def test_shapes_for_any_size(backbone: Backbone):
    features = backbone.extract(torch.rand(2, 3, 40, 72), backbone.provides, layers=(-2, -1))
    assert features.patches.shape == features.keys.shape == (2, 256, 5, 9)
    assert features.queries.shape == features.values.shape == (2, 256, 5, 9)
    assert features.cls.shape == (2, 256)
    assert features.attention.shape == (2, 4, 5, 9)


def test_layers_are_joined_in_the_order_asked(backbone: Backbone):
    image = torch.rand(1, 3, 16, 24)
    both = backbone.extract(image, backbone.provides, layers=(1, -1))
    first, last = (backbone.extract(image, backbone.provides, layers=(layer,)) for layer in (1, 3))
    for kind in backbone.provides:
        assert not torch.equal(first[kind], last[kind])
        torch.testing.assert_close(both[kind], torch.cat([first[kind], last[kind]], dim=1))


def test_without_the_norm_come_the_tokens_that_leave_the_block(backbone: Backbone, tiny_vit: DinoViT):
    image = torch.rand(1, 3, 16, 24)
    raw = backbone.extract(image, {"patches", "cls"}, layers=(1,), norm=False)
    with_norm = backbone.extract(image, {"patches", "cls"}, layers=(1,))
    torch.testing.assert_close(tiny_vit.norm(raw.cls), with_norm.cls)
    torch.testing.assert_close(tiny_vit.norm(raw.patches.movedim(1, -1)).movedim(-1, 1), with_norm.patches)


def test_only_what_is_wanted(backbone: Backbone):
    features = backbone.extract(torch.rand(1, 3, 16, 16), {"cls"})
    assert features.cls.shape == (1, 128)
    with pytest.raises(ValueError, match="you did not ask for patches: extract was asked for cls"):
        _ = features.patches


def test_last_layer_is_the_modules_own_output(backbone: Backbone, tiny_vit: DinoViT):
    image = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (backbone.mean, backbone.std))
    torch.testing.assert_close(backbone.extract(image, {"cls"}).cls, tiny_vit((image - mean) / std))


def test_attention_is_the_softmax_row_of_the_class_token(backbone: Backbone, tiny_vit: DinoViT):
    """Against torch's own attention: the class token's output is the attention-weighted mean of the values."""
    image = torch.rand(1, 3, 64, 64)
    captured = {}
    block = tiny_vit.blocks[-1]
    block.attn.proj.register_forward_hook(lambda module, inputs, output: captured.update(joined=inputs[0]))
    block.attn.qkv.register_forward_hook(lambda module, inputs, output: captured.update(qkv=output))
    rows = backbone.extract(image, {"attention", "cls"}).attention[0].flatten(1)  # [heads, N]
    values = captured["qkv"][0].chunk(3, dim=-1)[2].unflatten(1, (backbone.num_heads, -1))  # [1+N, heads, c]
    own = 1 - rows.sum(dim=1)  # what is left is the class token's attention to itself
    expected = own[:, None] * values[0] + torch.einsum("hn,nhc->hc", rows, values[1:])
    torch.testing.assert_close(captured["joined"][0, 0], expected.flatten())


def test_keys_are_the_last_blocks(backbone: Backbone, tiny_vit: DinoViT):
    captured = {}
    tiny_vit.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: captured.update(qkv=output))
    keys = backbone.extract(torch.rand(1, 3, 16, 24), {"keys"}).keys
    torch.testing.assert_close(keys[0].flatten(1).T, captured["qkv"][0].chunk(3, dim=-1)[1][1:])


def test_registers_are_no_patches():
    backbone = Backbone(DinoViT(ViTShape(64, 2, 1, 8, 4, registers=3)), name="reg", sha256="")
    found = backbone.extract(torch.rand(1, 3, 32, 16), {"patches", "attention"})
    assert found.patches.shape == (1, 64, 4, 2)
    assert found.attention.sum() < 1


@pytest.mark.parametrize("size", [(64, 60), (7, 64), (0, 64)])
def test_sides_must_be_multiples_of_the_patch(backbone: Backbone, size: tuple[int, int]):
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]}.*patch size 8"):
        backbone.extract(torch.rand(1, 3, *size))


def test_impossible_wishes_say_what_there_is(backbone: Backbone):
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(ValueError, match=r"no colors; it has attention, cls, keys, patches, queries, values"):
        backbone.extract(image, {"colors"})
    with pytest.raises(ValueError, match="has 4"):
        backbone.extract(image, layers=(4,))
    for dtype in (torch.int64, torch.bool):
        with pytest.raises(ValueError, match=rf"uint8 or float \[B, 3, H, W\], got {dtype}"):
            backbone.extract(torch.zeros(1, 3, 64, 64, dtype=dtype))
    with pytest.raises(ValueError, match=r"resnet18 has no attention; it has cls, patches"):
        load_backbone("random:resnet18").extract(image, {"attention"})


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "xcit_nano_12_p16_224", "deit_tiny_patch16_224"])
def test_other_timm_bodies(name: str):
    backbone = load_backbone(f"random:{name}")
    found = backbone.extract(torch.rand(1, 3, 64, 96), {"patches", "cls"})
    assert found.patches.shape[-2:] == (64 // backbone.patch_size, 96 // backbone.patch_size)
    assert found.cls.shape == (1, backbone.embed_dim)


@pytest.mark.parametrize(
    "name", ["vit_medium_patch16_reg4_gap_256", "vit_base_patch16_siglip_224", "vit_tiny_patch16_224"]
)
def test_the_pooled_feature_of_a_vit_is_its_own(name: str):
    backbone = load_backbone(f"random:{name}")
    images = torch.rand(2, 3, *backbone.module.patch_embed.img_size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        tokens = backbone.module.forward_features((images - mean) / std)
        expected = backbone.module.forward_head(tokens, pre_logits=True)
    found = backbone.extract(images, {"cls"}, layers=[-1]).cls
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert backbone.extract(images, {"cls"}, layers=[-2, -1]).cls.shape == (2, 2 * backbone.embed_dim)


def test_a_fine_tuned_file_keeps_the_pixel_statistics_it_was_trained_with(tmp_path: Path):
    body = load_backbone("random:mobilenetv3_small_050").module
    body_file = tmp_path / "model.safetensors"
    tensors = {f"backbone.{name}": value for name, value in body.state_dict().items()}
    facts = {"architecture": describe(body), "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    write_tensors(body_file, tensors, facts)
    backbone = load_backbone(str(body_file))
    assert (backbone.mean, backbone.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    for wrong in ([0.0, 1.0, 1.0], [1.0], "text", [float("nan")] * 3):
        write_tensors(body_file, tensors, {**facts, "std": wrong})
        with pytest.raises(CheckpointError, match="as the pixels' std, expected three numbers"):
            load_backbone(str(body_file))


def test_frozen_and_in_evaluation_mode(backbone: Backbone):
    assert not any(parameter.requires_grad for parameter in backbone.module.parameters())
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(backbone.extract(image).patches, backbone.extract(image).patches)


def test_random_weights_follow_the_seed():
    first, again, other = (load_backbone("random:vit_micro_patch8_64", seed=s) for s in (3, 3, 4))
    assert first.sha256 == again.sha256 != other.sha256
    before = torch.random.get_rng_state()
    load_backbone("random:vit_micro_patch8_64")
    assert torch.equal(before, torch.random.get_rng_state())


def test_other_normalization_shares_the_weights(backbone: Backbone):
    image = torch.rand(1, 3, 16, 16)
    other = backbone.with_normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    assert other.module is backbone.module
    by_hand = (image - torch.tensor(backbone.mean).view(3, 1, 1)) / torch.tensor(backbone.std).view(3, 1, 1)
    torch.testing.assert_close(other.extract(by_hand).patches, backbone.extract(image).patches)


def test_unknown_names_are_answered_with_near_ones():
    with pytest.raises(ValueError, match="vit_small_patch16_224"):
        load_backbone("random:vit_smal_patch16_224")
    with pytest.raises(ValueError, match="not a multiple"):
        build_module("vit_small_patch16_230")


def test_positions_at_their_own_size_are_untouched_and_smooth_elsewhere():
    vit = DinoViT(ViTShape(64, 1, 1, 8, 6))
    assert vit.positions(6, 6) is vit.pos_embed
    with torch.no_grad():
        vit.pos_embed.fill_(0.5)
    torch.testing.assert_close(vit.positions(9, 4), torch.full((1, 37, 64), 0.5))


def test_positions_without_offset_are_plain_bicubic():
    vit = DinoViT(ViTShape(64, 1, 1, 8, 6, position_offset=0.0))
    table = vit.pos_embed[:, 1:].reshape(1, 6, 6, 64).permute(0, 3, 1, 2)
    expected = F.interpolate(table, size=(9, 4), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(vit.positions(9, 4)[:, 1:], expected)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 13, 29, 37, 60])
def test_positions_come_out_at_every_size(size: int):
    assert DinoViT(ViTShape(64, 1, 1, 8, 14)).positions(size, 2 * size).shape == (1, 1 + 2 * size**2, 64)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(tiny_vit: DinoViT):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    image = torch.rand(1, 3, 64, 96)
    expected = Backbone(tiny_vit, name="tiny", sha256="").extract(image).patches
    found = Backbone(tiny_vit, name="tiny", sha256="").to("cuda").extract(image).patches.cpu()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# --- Sizes and grids of other bodies -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "patch"),
    [("vit_tiny_r_s16_p8_224", 32), ("swin_tiny_patch4_window7_224", 32), ("coatnet_pico_rw_224", 32)],
)
def test_the_grid_is_measured_and_windows_follow_the_image(name: str, patch: int):
    """A stem of convolutions makes a patch larger than the name says; windows and positions are resized."""
    backbone = load_backbone(f"random:{name}")
    assert backbone.patch_size == patch
    for height, width in ((2, 3), (3, 3)):
        features = backbone.extract(torch.rand(1, 3, height * patch, width * patch), {"patches", "cls"})
        assert features.patches.shape[-2:] == (height, width)


def test_a_resized_body_is_the_body_at_its_own_size():
    """BEiT's bias tables are resampled for another size, and not for its own, also after another."""
    backbone = load_backbone("random:beit_base_patch16_224")
    image = torch.rand(1, 3, 224, 224)
    first = backbone.extract(image, {"cls"}).cls
    small = backbone.extract(image[..., :96, :64], {"patches", "cls"})
    assert small.patches.shape == (1, 768, 6, 4)
    assert torch.equal(backbone.extract(image, {"cls"}).cls, first)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (backbone.mean, backbone.std))
    with torch.no_grad():
        tokens = backbone.module.forward_features((image - mean) / std)
        torch.testing.assert_close(first, backbone.module.fc_norm(tokens[:, 0]))


@pytest.mark.parametrize("name", ["mixer_s32_224", "levit_128s", "cait_xxs24_224"])
def test_a_body_of_one_size_says_which(name: str):
    backbone = load_backbone(f"random:{name}")
    assert backbone.extract(torch.rand(1, 3, 224, 224), {"cls"}).cls.shape == (1, backbone.embed_dim)
    size = 2 * backbone.patch_size
    with pytest.raises(ValueError, match=rf"{name} takes images of 224x224 .* alone.*this one is {size}x{size}"):
        backbone.extract(torch.rand(1, 3, size, size))


def test_a_body_whose_cells_are_no_whole_pixels_has_no_patches():
    backbone = load_backbone("random:crossvit_9_240")
    assert backbone.extract(torch.rand(1, 3, 240, 240), {"cls"}).cls.shape[0] == 1
    with pytest.raises(ValueError, match="crossvit_9_240 has no patches; it has cls"):
        backbone.extract(torch.rand(1, 3, 240, 240))


def test_maps_that_a_network_resizes_are_refused():
    backbone = load_backbone("random:mobilevitv2_050")
    with pytest.raises(ValueError, match="gives a map of 8x8 cells where 7x7 are expected"):
        backbone.extract(torch.rand(1, 3, 224, 224))
    assert backbone.extract(torch.rand(1, 3, 192, 256)).patches.shape[-2:] == (6, 8)


@pytest.mark.parametrize(("name", "nonnegative"), [("resnet18", True), ("convnext_atto", False)])
def test_whether_a_map_has_negative_values_is_measured(name: str, nonnegative: bool):
    backbone = load_backbone(f"random:{name}")
    assert backbone.nonnegative_maps is nonnegative
    assert not backbone.uniform_width


def test_random_weights_state_the_version_that_drew_them():
    import timm

    from tasks.harness.runner import describe_checkpoint

    assert describe_checkpoint(load_backbone("random:vit_micro_patch8_64"))["timm"] == timm.__version__


def test_a_backbone_can_stand_for_other_layers(backbone: Backbone):
    image = torch.rand(1, 3, 16, 24)
    other = backbone.with_layers((1, -1), norm=False)
    assert (other.embed_dim, backbone.embed_dim) == (256, 128)
    features = other.extract(image, {"patches", "cls", "attention"})
    expected = backbone.extract(image, {"patches", "cls", "attention"}, layers=(1, -1), norm=False)
    for kind in ("patches", "cls", "attention"):
        assert torch.equal(features[kind], expected[kind])
    assert torch.equal(backbone.extract(image).patches, other.extract(image, layers=(-1,), norm=True).patches)
    with pytest.raises(ValueError, match="has 4, numbered"):
        backbone.with_layers((7,))
    with pytest.raises(ValueError, match="resnet18 has layers of different widths"):
        load_backbone("random:resnet18").with_layers((-2,))


@pytest.mark.parametrize(("offset", "antialias"), [(0.1, False), (0.0, True), (0.0, False)])  # the rules in use
@pytest.mark.parametrize("size", [(7, 7), (30, 52), (4, 9), (2, 2), (14, 20)])
def test_positions_by_fixed_matrices_are_those_of_interpolation(size: tuple[int, int], offset: float, antialias: bool):
    """What CUDA trains with, values and gradients: only the order of the sums differs."""
    table = torch.randn(1, 5, 14, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    weights = torch.randn(1, 5, *size, generator=torch.Generator().manual_seed(1))
    results = []
    for function in (resample, resample_by_matrices):
        leaf = table.clone().requires_grad_()
        sampled = function(leaf, size, offset, antialias)
        (sampled * weights).sum().backward()
        results.append((sampled.detach(), leaf.grad))
    torch.testing.assert_close(*results, rtol=0, atol=2e-5)

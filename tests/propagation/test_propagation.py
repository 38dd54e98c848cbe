"""Label propagation against a naive loop, its presets, and the ways labels go in and masks come out."""

import math
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dino_dense.config import presets, schema
from dino_dense.propagation.frames import frame_size, resize_frame
from dino_dense.propagation.labels import decode_labels, encode_labels
from dino_dense.propagation.protocol import PropagationProtocol
from dino_dense.propagation.search import Neighborhood
from dino_dense.propagation.stream import LabelPropagator, memory_limit
from tests.propagation.frames import carry_through, carry_to_frame

PRESETS = Path(__file__).resolve().parents[2] / "configs" / "protocols"


def is_seen(dy: int, dx: int, radius: int, window: str) -> bool:
    if window == "square":
        return max(abs(dy), abs(dx)) <= radius
    distance = math.hypot(dy, dx)
    return distance <= radius if window == "circle" else distance < radius


def naive_propagation(target: Tensor, sources: Tensor, labels: Tensor, options: dict[str, Any]) -> np.ndarray:
    """The definition, one query at a time, in float64 and with plain exponentials."""
    h, w = labels.shape[2:]
    unit_target = F.normalize(target.double(), dim=1).numpy()
    unit_sources = F.normalize(sources.double(), dim=1).numpy()
    out = np.zeros((labels.shape[1], h, w))
    for y in range(h):
        for x in range(w):
            found = [
                (unit_target[y * w + x] @ unit_sources[i, :, v * w + u], labels[i, :, v, u].numpy())
                for i in range(len(sources))
                for v in range(h)
                for u in range(w)
                if i < options["unrestricted"]
                or not options["radius"]
                or is_seen(v - y, u - x, options["radius"], options["window"])
            ]
            last_kept = sorted((cosine for cosine, _ in found), reverse=True)[: options["top_k"]][-1]
            kept = [(math.exp(c / options["temperature"]), label) for c, label in found if c >= last_kept]
            out[:, y, x] = sum(a * label for a, label in kept) / sum(a for a, _ in kept)
    return out


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    """Features of +-1 in 16 dimensions: cosines are multiples of 1/8, exact in float32, and full of ties."""
    hw = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    n, channels = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    signs = torch.randint(0, 2, (n + 1, 16, hw[0] * hw[1]), generator=generator) * 2.0 - 1
    if draw(st.booleans()):
        signs = signs[:1].expand_as(signs)  # all frames identical
    labels = torch.rand(n, channels, *hw, generator=generator)
    options = {
        "radius": draw(st.integers(0, 4)),
        "top_k": draw(st.integers(1, 12)),
        "window": draw(st.sampled_from(["square", "circle", "open_circle"])),
        "unrestricted": draw(st.integers(0, n)),
        "temperature": draw(st.sampled_from([0.05, 0.1, 0.7])),
        "keep_ties": True,
    }
    return signs[0].T, signs[1:], labels, options


@given(problems(), st.sampled_from([1, 3000, 20_000, 2**28]))
@settings(max_examples=80, deadline=None)
def test_equals_the_naive_loop_whatever_the_memory(problem: Any, max_bytes: int) -> None:
    target, sources, labels, options = problem
    ours = carry_to_frame(target, sources, labels, Neighborhood(**options), max_bytes)
    expected = naive_propagation(target, sources, labels, options)
    np.testing.assert_allclose(ours.numpy(), expected, rtol=0, atol=1e-6)


def random_problem(n: int = 4, hw: tuple[int, int] = (21, 30)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    patches = hw[0] * hw[1]
    target = torch.randn(patches, 32, generator=generator)
    sources = torch.randn(n, 32, patches, generator=generator)
    return target, sources, torch.rand(n, 3, *hw, generator=generator)


@pytest.mark.parametrize("radius", [0, 5])
@pytest.mark.parametrize("unrestricted", [0, 1])
def test_the_memory_budget_does_not_change_real_valued_results(radius: int, unrestricted: int) -> None:
    neighborhood = Neighborhood(radius, "square", 5, True, 0.1, unrestricted)
    results = [carry_to_frame(*random_problem(), neighborhood, size) for size in (2**28, 2**20, 2**17)]
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-6)


def test_a_low_temperature_neither_overflows_nor_loses_the_labels() -> None:
    # exp(1 / 0.005) is beyond float32.
    target, sources, labels = random_problem()
    sources[0] = target.T
    result = carry_to_frame(target, sources, labels, Neighborhood(3, "square", 5, True, 0.005))
    torch.testing.assert_close(result, labels[0], rtol=0, atol=1e-6)


def test_exactly_top_k_are_kept_if_ties_are_not() -> None:
    hw, copies = (2, 3), 6
    # Signs in 16 dimensions: cosines are exact, so that copies tie to the last bit.
    target = torch.randint(0, 2, (6, 16), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    sources = target.T.expand(copies, -1, -1)
    labels = torch.eye(copies)[:, :, None, None].expand(-1, -1, *hw)
    cut = carry_to_frame(target, sources, labels, Neighborhood(0, "square", 4, False, 0.1))
    assert ((cut > 0).sum(0) == 4).all()
    kept = carry_to_frame(target, sources, labels, Neighborhood(0, "square", 4, True, 0.1))
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / copies))


# ---- a whole video


def moving_square(frames: int = 12, hw: tuple[int, int] = (12, 16)) -> tuple[Tensor, Tensor]:
    """Features [T, D, h, w] that tell a square, moving right by a patch every other frame, from the rest."""
    labels = torch.zeros(frames, *hw, dtype=torch.long)
    for index in range(frames):
        labels[index, 3:7, 2 + index // 2 : 6 + index // 2] = 1
    one_hot = F.one_hot(labels, 2).permute(0, 3, 1, 2).float()
    noise = 0.05 * torch.randn(frames, 8, *hw, generator=torch.Generator().manual_seed(0))
    return torch.cat([one_hot, noise], dim=1), one_hot


@pytest.mark.parametrize("preset", ["dino", "crw", "dinov3"])
def test_features_that_tell_the_object_carry_its_mask_through_the_video(preset: str) -> None:
    features, labels = moving_square()
    frames = carry_through(features, labels[0], load_protocol(preset))
    for propagated, true in zip(frames, labels, strict=True):
        assert torch.equal(propagated.argmax(0), true.argmax(0))


@pytest.mark.parametrize("pad_context", [False, True])
@pytest.mark.parametrize("window_on", ["all", "recent"])
@pytest.mark.parametrize("context_frames", [0, 2, 3])
def test_the_context_is_frame_0_and_the_last_frames_with_their_soft_labels(
    context_frames: int, window_on: Any, pad_context: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(7, 12, 5, 6, generator=generator)
    first = torch.rand(3, 5, 6, generator=generator)
    protocol = PropagationProtocol(
        context_frames=context_frames, radius=2, window_on=window_on, pad_context=pad_context, top_k=40
    )
    ours = carry_through(features, first, protocol)
    assert torch.equal(ours[0], first)
    known = [first]
    for index in range(1, len(features)):
        recent = list(range(index - context_frames, index))
        context = [0] + [max(i, 0) for i in recent if pad_context or i >= 1]
        expected = carry_to_frame(
            features[index].flatten(1).T,
            features[context].flatten(2),
            torch.stack([known[i] for i in context]),
            Neighborhood(2, "square", 40, True, 0.1, unrestricted=int(window_on == "recent")),
        )
        torch.testing.assert_close(ours[index], expected, rtol=0, atol=1e-6)
        known.append(expected)


def test_features_are_dropped_when_out_of_the_context() -> None:
    propagator = LabelPropagator(PropagationProtocol(context_frames=2))
    alive: list[weakref.ref[Tensor]] = []
    for index in range(9):
        features = torch.randn(4, 3, 3)
        alive.append(weakref.ref(features))
        propagator.step(features, None if index else torch.rand(2, 3, 3))
        del features
        assert sum(reference() is not None for reference in alive) <= 3


@pytest.mark.parametrize("later", [False, True])
def test_features_of_another_grid_are_refused(later: bool) -> None:
    propagator = LabelPropagator(PropagationProtocol())
    if later:
        propagator.step(torch.rand(4, 3, 4), torch.rand(2, 3, 4))
    with pytest.raises(ValueError, match=r"features are \(4, 3, 5\): expected \[D, 3, 4\]"):
        propagator.step(torch.rand(4, 3, 5), None if later else torch.rand(2, 3, 4))


def test_a_stream_needs_labels_first() -> None:
    with pytest.raises(ValueError, match="no labels"):
        LabelPropagator(PropagationProtocol()).step(torch.zeros(2, 3, 3))


def test_labels_of_a_later_frame_begin_a_context_of_their_own() -> None:
    features, labels = moving_square()
    protocol = load_protocol("dino")
    propagator = LabelPropagator(protocol)
    ours = [propagator.step(frame, labels[index] if index in (0, 5) else None) for index, frame in enumerate(features)]
    objects = labels[5, 1:].any(dim=0)
    assert torch.equal(ours[5][:, objects], labels[5][:, objects])
    anew = carry_through(features[5:], ours[5], protocol)
    assert torch.equal(torch.stack(ours[6:]), torch.stack(anew[1:]))


# ---- presets


def load_protocol(preset: str) -> PropagationProtocol:
    return schema.from_plain(PropagationProtocol, presets.load_protocol("davis", preset))


def test_the_dino_preset_is_the_default_and_names_every_field() -> None:
    assert load_protocol("dino") == PropagationProtocol()
    for preset in PRESETS.glob("davis_*.yaml"):
        assert list(yaml.safe_load(preset.read_text())) == list(PropagationProtocol.__dataclass_fields__)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("context_frames", -1, "expected 0 or more"),
        ("radius", -2, "expected 0 or more"),
        ("top_k", 0, "expected 1 or more"),
        ("temperature", 0.0, "above 0"),
        ("short_side", 0, "expected 1 or more"),
        ("window", "round", "square, circle, open_circle"),
        ("rounding", "floor", "floor64, ceil, nearest"),
        ("std", (0.2, 0.2), "three numbers"),
        ("std", (0.2, 0.2, 0.0), "above 0"),
    ],
)
def test_a_constant_out_of_range_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"{field} is .*{message}"):
        PropagationProtocol(**{field: value})


# ---- frames and labels in, masks out


@pytest.mark.parametrize(
    ("native", "short_side", "rounding", "patch_size", "expected"),
    [
        ((480, 854), 480, "floor64", 16, (480, 832)),
        ((480, 854), 480, "floor64", 8, (480, 832)),
        ((480, 1152), 480, "floor64", 16, (480, 1152)),  # `shooting` of DAVIS-2017
        ((854, 480), 480, "floor64", 16, (832, 480)),
        ((500, 500), 480, "floor64", 16, (480, 448)),  # frame and labels alike
        ((480, 854), 480, "floor64", 14, (476, 826)),
        ((480, 854), None, "floor64", 16, (480, 832)),
        ((480, 854), 960, "ceil", 16, (960, 1712)),
        ((854, 480), 960, "ceil", 16, (1712, 960)),
        ((480, 854), None, "ceil", 8, (480, 856)),
        ((480, 854), 960, "nearest", 16, (960, 1712)),
        ((480, 850), 480, "nearest", 16, (480, 848)),
        ((480, 850), 480, "ceil", 16, (480, 864)),
    ],
)
def test_frame_sizes(
    native: tuple[int, int], short_side: int | None, rounding: Any, patch_size: int, expected: tuple[int, int]
) -> None:
    assert frame_size(*native, short_side=short_side, rounding=rounding, patch_size=patch_size) == expected


@given(
    st.integers(64, 2000),
    st.integers(64, 2000),
    st.none() | st.integers(64, 1000),
    st.sampled_from(["floor64", "ceil", "nearest"]),
    st.sampled_from([8, 14, 16, 32]),
)
def test_frame_sizes_fit_the_patch_size_and_turn_with_the_frame(
    height: int, width: int, short_side: int | None, rounding: Any, patch_size: int
) -> None:
    options: dict[str, Any] = {"short_side": short_side, "rounding": rounding, "patch_size": patch_size}
    size = frame_size(height, width, **options)
    assert all(side > 0 and side % patch_size == 0 for side in size)
    if height != width:
        assert frame_size(width, height, **options) == size[::-1]


def test_a_frame_without_a_single_patch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"40 high and 30 wide, .* becomes 16x0: raise short_side"):
        frame_size(40, 30, short_side=None, rounding="floor64", patch_size=16)


def test_a_frame_of_the_right_size_stays_as_it_is_and_one_color_stays_one_color() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
    for interpolation in ("bilinear", "bicubic"):
        same = resize_frame(frame, (9, 14), interpolation)  # type: ignore[arg-type]
        assert np.array_equal(same, frame)
        resized = resize_frame(np.full_like(frame, 51), (5, 6), interpolation)  # type: ignore[arg-type]
        assert np.array_equal(resized, np.full((5, 6, 3), 51, np.uint8))


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear"])
def test_labels_survive_the_patch_grid_and_back(method: Any) -> None:
    blocks = np.random.default_rng(0).integers(0, 4, (6, 8)).astype(np.uint8)
    ids = blocks.repeat(16, axis=0).repeat(16, axis=1)
    labels = encode_labels(ids, (6, 8), 3, method)
    torch.testing.assert_close(labels, F.one_hot(torch.from_numpy(blocks).long(), 4).permute(2, 0, 1).float())
    for upsample_to in ("frame", "original"):
        decoded = decode_labels(labels, 16, (96, 128), "nearest", "minmax", upsample_to)  # type: ignore[arg-type]
        np.testing.assert_array_equal(decoded, ids)


def test_bilinear_labels_are_shares_that_sum_to_one() -> None:
    ids = np.random.default_rng(0).integers(0, 3, (60, 84)).astype(np.uint8)
    labels = encode_labels(ids, (8, 11), 2, "bilinear")
    assert labels.shape == (3, 8, 11)
    assert ((labels > 0) & (labels < 1)).any()
    torch.testing.assert_close(labels.sum(0), torch.ones(8, 11))


def test_an_object_that_vanishes_keeps_its_channel() -> None:
    ids = np.zeros((64, 64), np.uint8)
    ids[:32] = 1
    ids[63, 63] = 2
    labels = encode_labels(ids, (4, 4), 2)
    assert labels.shape == (3, 4, 4)
    assert not labels[2].any()
    assert set(np.unique(decode_labels(labels, 16, (64, 64)))) == {0, 1}


def test_labels_above_the_number_of_objects_are_refused() -> None:
    with pytest.raises(ValueError, match="label id of 3, but num_objects is 2"):
        encode_labels(np.full((8, 8), 3, np.uint8), (2, 2), 2)


def test_decoding_is_upsample_normalize_argmax_then_nearest() -> None:
    scores = (
        torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0.3, 0.1])[:, None, None]
    )
    dense = F.interpolate(scores[None], scale_factor=8, mode="bilinear", align_corners=False)[0].double()
    scaled = torch.stack([(c - c.min()) / (c - c.min()).max() for c in dense])
    rows = ((np.arange(43) + 0.5) * 40 / 43).astype(int)
    columns = ((np.arange(61) + 0.5) * 56 / 61).astype(int)
    expected = scaled.argmax(0).numpy()[rows][:, columns]
    assert (decode_labels(scores, 8, (43, 61)) == expected).mean() > 0.999
    plain = decode_labels(scores, 8, (40, 56), normalize="none")
    assert (plain == dense.argmax(0).numpy()).mean() > 0.999
    assert (plain != decode_labels(scores, 8, (40, 56))).any()


def test_a_channel_of_one_value_is_not_divided_by_zero() -> None:
    scores = torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])
    assert (decode_labels(scores, 4, (16, 16)) == 1).all()
    assert (decode_labels(scores.flip(0), 4, (16, 16)) == 0).all()


def test_a_gpu_gives_propagation_a_share_of_its_free_memory(monkeypatch: pytest.MonkeyPatch):
    cpu, gpu, gib = torch.device("cpu"), torch.device("cuda", 0), 2**30
    assert memory_limit(None, cpu) == 512 * 2**20
    assert memory_limit(700, cpu) == memory_limit(700, gpu) == 700 * 2**20
    kept = {"reserved": 0, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: kept["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: kept["allocated"])
    for free, expected in ((76 * gib, 9.5 * gib), (2 * gib, gib / 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 80 * gib))
        assert memory_limit(None, gpu) == expected
    kept |= {"reserved": 10 * gib, "allocated": 2 * gib}  # PyTorch keeps 8 GiB for its next tensors
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (68 * gib, 80 * gib))
    assert memory_limit(None, gpu) == 9.5 * gib

"""TokenCut, LOST, MaskCut and attention against their definitions, the bilateral solver against its system."""

from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from data.rle import decode_mask, encode_mask
from dino_dense.objects import cuts, lanczos
from dino_dense.objects.attention import attention_masks, attention_segments
from dino_dense.objects.bilateral import CONFIDENCE, SIGMA_LUMA, binarise, make_grid, refine, system
from dino_dense.objects.cuts import maskcut, maskcuts, patch_graph, second_eigenvector, tokencut, tokencuts
from dino_dense.objects.lost import lost, votes
from dino_dense.objects.protocol import SegmentProtocol
from dino_dense.objects.segment import box_of, component, largest_component, working_size


def scene(layout: list[str], noise: float = 0.0, seed: int = 0) -> torch.Tensor:
    """Features [C, h, w] of a drawing: a letter an object, each with a direction of its own."""
    names = sorted(set("".join(layout)))
    ids = torch.tensor([[names.index(letter) for letter in row] for row in layout])
    features = torch.eye(8)[ids].permute(2, 0, 1)
    return features + noise * torch.randn(features.shape, generator=torch.Generator().manual_seed(seed))


def drawn(layout: list[str], letters: str) -> np.ndarray:
    return np.array([[letter in letters for letter in row] for row in layout])


ONE = ["........", "..aa....", "..aa....", "........", "........"]
TWO = ["........", ".aa.....", ".aa..b..", "........", "........"]


# --- Normalized cut ---


def naive_tokencut(features: torch.Tensor, tau: float, eps: float) -> tuple[np.ndarray, bool]:
    """The definition, pair by pair, and whether it is clear: one second vector, and one extreme patch."""
    tokens = features.flatten(1).T.numpy()
    n = len(tokens)
    weights = np.full((n, n), eps)
    for i in range(n):
        for j in range(n):
            cosine = tokens[i] @ tokens[j] / np.linalg.norm(tokens[i]) / np.linalg.norm(tokens[j])
            weights[i, j] = 1.0 if cosine > tau else eps
    degrees = np.diag(weights.sum(1))
    eigenvalues, vectors = scipy.linalg.eigh(degrees - weights, degrees)
    values = vectors[:, 1]
    foreground = values > values.mean()
    seed = int(np.abs(values).argmax())
    if not foreground[seed]:
        foreground = ~foreground
    largest, second = np.sort(np.abs(values))[[-1, -2]]
    is_clear = eigenvalues[2] - eigenvalues[1] > 1e-6 and largest - second > 1e-6 * largest
    return component(foreground.reshape(features.shape[1:]), seed), bool(is_clear)


@settings(deadline=None, max_examples=25)
@given(st.integers(3, 6), st.integers(3, 6), st.integers(0, 1000))
def test_tokencut_is_the_naive_one(height: int, width: int, seed: int):
    features = torch.randn(4, height, width, generator=torch.Generator().manual_seed(seed))
    expected, is_clear = naive_tokencut(features, 0.2, 1e-5)
    assume(is_clear)
    np.testing.assert_array_equal(tokencut(features).mask, expected)


def test_tokencut_finds_the_object_and_does_not_depend_on_the_length_of_features():
    features = scene(ONE, noise=0.03)
    found = tokencut(features)
    np.testing.assert_array_equal(found.mask, drawn(ONE, "a"))
    lengths = torch.rand(features.shape[1:], generator=torch.Generator().manual_seed(1)) + 0.1
    np.testing.assert_array_equal(tokencut(features * lengths).mask, found.mask)
    assert found.mask.flat[found.seed]
    assert 0 < found.ncut < 0.01
    assert found.confidence > 0.5


def test_large_graphs_have_the_same_eigenvector(monkeypatch: pytest.MonkeyPatch):
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(4, 16, generator=generator)[torch.arange(24 * 24) % 4]
    features = (centers + torch.randn(centers.shape, generator=generator)).T.reshape(16, 24, 24)
    graph = patch_graph(features, 0.2, 1e-5)
    assert len(graph.adjacency) >= cuts.LANCZOS_FROM
    lanczos = second_eigenvector(graph)
    monkeypatch.setattr(cuts, "LANCZOS_FROM", 10**6)
    dense = second_eigenvector(graph)
    assert lanczos.value == pytest.approx(dense.value, abs=1e-10)
    assert lanczos.gap == pytest.approx(dense.gap, abs=1e-10)
    ours, theirs = (np.abs(pair.vector) / np.abs(pair.vector).max() for pair in (lanczos, dense))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)


@pytest.mark.parametrize("side", [23, 27])
def test_edges_are_the_cosines_above_tau_in_both_directions(side: int):
    generator = torch.Generator().manual_seed(side)
    features = torch.randn(16, side, side, generator=generator)
    assert side**2 > cuts.LANCZOS_FROM
    unit = torch.nn.functional.normalize(features.flatten(1).double(), dim=0)
    cosines = unit.T @ unit
    for picture in (features, features.mT):  # of two orders in memory
        adjacency = patch_graph(picture, 0.2, 1e-5).adjacency
        expected = cosines if picture is features else cosines[order := by_columns(side)][:, order]
        clear = (expected - 0.2).abs() > 1e-6
        assert torch.equal(adjacency[clear], (expected > 0.2).float()[clear])
        assert torch.equal(adjacency, adjacency.T)


def by_columns(side: int) -> torch.Tensor:
    """Numbers of the patches of a square, column by column."""
    return torch.arange(side**2).reshape(side, side).T.flatten()


def images_of_objects(count: int, side: int) -> torch.Tensor:
    """Noisy features [B, 16, h, w] of a square of its own size on a ground."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.zeros(count, side, side, dtype=torch.long)
    for number in range(count):
        kinds[number, 3 : side // 2 + number, 4 : side // 3 + number] = 1
    centers = torch.randn(2, 16, generator=generator)[kinds]
    return (centers + torch.randn(centers.shape, generator=generator)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [8, 26], ids=["dense", "lanczos"])
def test_images_cut_at_once_are_cut_as_alone(side: int):
    """Also beside an image without structure, which has no cut."""
    images = images_of_objects(4, side)
    images[2] = 1.0
    together, alone = tokencuts(images), [tokencut(image) for image in images]
    assert len(together) == 4
    for ours, theirs in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours.mask, theirs.mask)
        assert ours.seed == theirs.seed
        assert (ours.confidence, ours.ncut) == pytest.approx((theirs.confidence, theirs.ncut), abs=1e-8)
    assert not together[2].mask.any()
    assert all(segment.mask.any() for segment in (together[0], together[1], together[3]))


def test_images_cut_at_once_wait_as_often_as_the_slowest(monkeypatch: pytest.MonkeyPatch):
    """A step of Lanczos ends in a test on the host, for which a device waits."""
    images, steps, eigh = images_of_objects(4, 26), [], torch.linalg.eigh

    def counted(matrices: torch.Tensor) -> object:
        steps.append(len(matrices))
        return eigh(matrices)

    def waits(call: Callable[[], object]) -> int:
        steps.clear()
        call()
        return len(steps)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    alone = [waits(lambda image=image: tokencut(image)) for image in images]  # type: ignore[misc]
    assert min(alone) > 1
    assert waits(lambda: tokencuts(images)) == max(alone)
    assert set(steps) == {4}
    rounds = [waits(lambda image=image: maskcut(image, masks=2)) for image in images]  # type: ignore[misc]
    assert max(alone) < waits(lambda: maskcuts(images, masks=2)) < sum(rounds) / 2


@pytest.mark.parametrize("side", [8, 26], ids=["dense", "lanczos"])
def test_several_objects_of_images_cut_at_once_are_those_of_each_alone(side: int):
    """Images leave the rounds at different times: some have no cut, some no second object."""
    images = images_of_objects(5, side)
    images[2] = 1.0
    corner = images[3:, :, 2 * side // 3 :, 2 * side // 3 :]
    corner.copy_(corner.flip(1))  # another direction: a second object
    together, alone = maskcuts(images, masks=4), [maskcut(image, masks=4) for image in images]
    assert len({len(segments) for segments in together}) > 1
    for ours, theirs in zip(together, alone, strict=True):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one.mask, other.mask)
            assert one.seed == other.seed
            assert (one.confidence, one.ncut) == pytest.approx((other.confidence, other.ncut), abs=1e-8)


def test_without_convergence_the_dense_solver_takes_over(monkeypatch: pytest.MonkeyPatch):
    features = torch.randn(8, 24, 24, generator=torch.Generator().manual_seed(0))
    expected = tokencut(features)
    monkeypatch.setattr(lanczos, "LARGEST_BASIS", 6)
    assert cuts.by_lanczos([patch_graph(features, 0.2, 1e-5)]) is None
    np.testing.assert_array_equal(tokencut(features).mask, expected.mask)
    for segment in tokencuts(torch.stack([features, features])):
        np.testing.assert_array_equal(segment.mask, expected.mask)


@pytest.mark.parametrize("shape", [(4, 4), (24, 24), (1, 1), (1, 2)])
def test_nothing_is_found_where_all_patches_are_alike(shape: tuple[int, int]):
    for found in (tokencut(torch.ones(3, *shape)), maskcut(torch.ones(3, *shape))[0]):
        assert not found.mask.any()
        assert found.confidence == 0
        assert found.ncut == 1
        assert found.seed == -1


def test_the_cut_in_pieces_is_told_by_its_gap():
    """Many patches that nothing resembles: each alone is as good a cut as another."""
    lonely = torch.eye(64).reshape(64, 8, 8)
    assert tokencut(lonely).confidence < 1e-9
    assert tokencut(scene(ONE)).confidence > 0.5


def test_features_that_are_not_numbers_are_refused():
    features = scene(ONE)
    features[0, 0, 0] = float("nan")
    for method in (tokencut, lost, maskcut):
        with pytest.raises(ValueError, match="not finite"):
            method(features)
    with pytest.raises(ValueError, match="not finite"):
        attention_masks(torch.full((2, 3, 3), torch.inf))


def test_maskcut_finds_one_object_after_the_other():
    layout = ["..........", ".aa...bbb.", ".aa...bbb.", "......bbb.", "..........", ".........."]
    found = maskcut(scene(layout), masks=3)
    masks = [one.mask for one in found]
    assert any(np.array_equal(mask, drawn(layout, "a")) for mask in masks)
    assert any(np.array_equal(mask, drawn(layout, "b")) for mask in masks)
    assert sum(mask.astype(int) for mask in masks).max() == 1, "a patch is in one mask"
    assert len(maskcut(scene(layout), masks=1)) == 1


def test_maskcut_takes_what_holds_the_corners_for_the_background():
    """An object larger than the background around it: TokenCut turns them round."""
    layout = ["." * 7, *(f".{'a' * 5}." for _ in range(6)), "." * 7]
    np.testing.assert_array_equal(tokencut(scene(layout)).mask, drawn(layout, "."))
    np.testing.assert_array_equal(maskcut(scene(layout))[0].mask, drawn(layout, "a"))


def maskcut_by_the_book(features: torch.Tensor, masks: int) -> list[np.ndarray]:
    """The rounds of maskcut.py: a dropped mask is a mask of nothing, which the next round starts from."""
    side = features.shape[1:]
    cut_out, painted, current, found = features, np.zeros(side, bool), np.zeros(side, bool), []
    for round_ in range(masks):
        painted = painted | current
        cut_out = cut_out * torch.from_numpy(~painted)
        mask = maskcut(cut_out, masks=1)[0].mask
        overlap = (mask & current).sum() / max((mask | current).sum(), 1)
        if round_ and (overlap > 0.5 or mask.mean() <= 0.01):
            mask = np.zeros(side, bool)
        current = mask
        own = mask & ~np.logical_or.reduce([np.zeros(side, bool), *found])
        found.append(own)
    return [mask for mask in found if mask.any()]


def test_maskcut_goes_on_after_a_mask_that_it_drops():
    """Noise with some structure: masks overlap, are dropped, and come back one round later."""
    more = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(4, 3, 3, generator=generator)
        features = torch.nn.functional.interpolate(noise[None], (9, 9), mode="bilinear")[0]
        features = features + 0.3 * torch.randn(4, 9, 9, generator=generator)
        found, expected = ([*masks] for masks in (maskcut(features, masks=4), maskcut_by_the_book(features, 4)))
        assert len(found) == len(expected)
        for one, mask in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one.mask, mask)
        more += len(found) > 1
    assert more, "some image has a second mask"


# --- LOST ---


def naive_lost(features: torch.Tensor, k: int) -> tuple[int, np.ndarray]:
    """The definition; degrees must differ near the seed and at place k."""
    tokens = features.flatten(1).T
    products = tokens @ tokens.T
    n = len(tokens)
    degrees = [sum(bool(products[i, j] > 0) for j in range(n) if j != i) for i in range(n)]
    order = sorted(range(n), key=lambda i: degrees[i])
    voters = [i for i in order[:k] if products[order[0], i] > 0]
    mask = np.array([float(sum(products[i, j] for i in voters)) > 0 for j in range(n)])
    return order[0], component(mask.reshape(features.shape[1:]), order[0])


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 1000))
def test_lost_is_the_naive_one(seed: int):
    features = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)) + 0.2
    tokens = features.flatten(1).T
    degrees = ((tokens @ tokens.T) > 0).sum(1)
    order, k = degrees.sort().values, 20
    assume(order[0] < order[1])  # the order of equal degrees is the sort's own
    found = lost(features, k)
    expected = naive_lost(features, k)
    assert found.seed == expected[0]
    np.testing.assert_array_equal(found.mask, expected[1])
    assert found.confidence == pytest.approx(1 - (int(order[0]) - 1) / 19)


def test_lost_finds_the_small_object():
    found = lost(scene(TWO))
    np.testing.assert_array_equal(found.mask, drawn(TWO, "b"))
    nothing = lost(torch.zeros(3, 4, 4))
    assert not nothing.mask.any()
    assert nothing.confidence == 0


# --- Attention ---


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 0.95), st.integers(0, 1000))
def test_attention_masks_are_the_fewest_patches_with_that_mass(mass: float, seed: int):
    attention = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(seed)) + 1e-3
    for head, mask in zip(attention, attention_masks(attention, mass), strict=True):
        shares = (head / head.sum()).numpy()
        assert shares[mask].sum() >= mass - 1e-5
        assert shares[mask].sum() - shares[mask].min() < mass + 1e-5, "one fewer would not do"
        assert mask.all() or shares[mask].min() >= shares[~mask].max()


def test_heads_of_the_attention():
    attention = torch.full((3, 2, 2), 1e-3)
    for head in range(3):
        attention[head, head // 2, head % 2] = 1 + head
    assert [int(found.mask.argmax()) for found in attention_segments(attention, 0.6, "best")] == [0, 1, 2]
    assert int(attention_segments(attention, 0.6, 1)[0].mask.argmax()) == 1
    assert attention_segments(attention, 0.6, "mean")[0].mask.sum() == 2, "5 of 6 parts are in two patches"
    with pytest.raises(ValueError, match="head 3: this backbone has 3"):
        attention_segments(attention, 0.6, 3)
    even = attention_segments(torch.ones(1, 10, 10), 0.6)[0]
    assert even.confidence == pytest.approx(0, abs=0.02)
    assert attention_segments(attention[:1], 0.6, 0)[0].confidence > 0.5


# --- Pieces, boxes, sizes ---


def test_pieces_touch_by_their_sides():
    mask = drawn(["aa..", "a..a", "...a", "..a."], "a")
    assert component(mask, 0).sum() == 3
    assert component(mask, 7).sum() == 2
    assert not component(mask, 2).any()
    assert largest_component(mask).sum() == 3
    assert not largest_component(np.zeros((2, 2), bool)).any()


def test_boxes_end_at_the_image():
    mask = drawn(["....", "..aa", "..a."], "a")
    assert box_of(mask, 8, (24, 32)) == (16, 8, 32, 24)
    assert box_of(mask, 8, (20, 27)) == (16, 8, 27, 20)
    assert box_of(np.zeros((3, 3), bool), 8, (24, 24)) is None


def test_run_lengths_there_and_back():
    mask = np.random.default_rng(0).random((7, 9)) > 0.5
    np.testing.assert_array_equal(decode_mask(encode_mask(mask)), mask)


def test_working_size():
    assert working_size((100, 200), SegmentProtocol()) == (100, 200)
    assert working_size((100, 203), SegmentProtocol(short_side=50)) == (50, 102)
    assert working_size((100, 200), SegmentProtocol(squash=480)) == (480, 480)


@pytest.mark.parametrize(
    "changes",
    [{"tau": 1.0}, {"eps": 0.0}, {"mass": 0.0}, {"mass": 1.1}, {"lost_k": 0}, {"short_side": 0}, {"squash": -1}],
)
def test_impossible_constants_are_refused(changes: dict[str, float]):
    name, value = next(iter(changes.items()))
    with pytest.raises(ValueError, match=rf"{name} is {value}: expected"):
        SegmentProtocol(**changes)


def test_two_sizes_are_refused():
    with pytest.raises(ValueError, match="one of them"):
        SegmentProtocol(short_side=100, squash=100)


# --- Bilateral solver ---


def blocks(height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """An image of a bright rectangle on dark ground, and its mask."""
    truth = np.zeros((height, width), bool)
    truth[10:31, 13:42] = True
    noise = np.random.default_rng(0).integers(-3, 4, (height, width, 3))
    return (np.where(truth[..., None], 200, 40) + noise).astype(np.uint8), truth


def test_the_grid_against_a_loop():
    image, _ = blocks(20, 20)
    grid = make_grid(image)
    luma = (image @ (0.299, 0.587, 0.114)).astype(float)
    assert grid.splat.sum(0).max() == grid.splat.sum(0).min() == 1, "a pixel is in one cell"
    first, last = np.ravel(grid.splat.argmax(axis=0)).reshape(20, 20)[[0, 15], [0, 15]]
    assert first != last
    assert int(luma[0, 0] / SIGMA_LUMA) != int(luma[15, 15] / SIGMA_LUMA)
    dense = grid.blur.toarray()
    np.testing.assert_array_equal(dense, dense.T)
    assert set(np.unique(dense)) <= {0, 1, 10}, "five axes: 2 each in the middle, 1 to a neighbor"
    assert (np.diag(dense) == 10).all()


def test_refining_solves_the_system_and_keeps_constants():
    image, truth = blocks()
    target = truth.astype(float)
    grid = make_grid(image)
    matrix, right = system(grid, target.ravel())
    exact = grid.splat.T @ np.linalg.solve(matrix.toarray(), right)
    np.testing.assert_allclose(refine(image, target).ravel(), exact, atol=1e-3)
    # What is rough is only what differs: rows sum to the confidence of their pixels.
    np.testing.assert_allclose(matrix.sum(1).ravel(), CONFIDENCE * grid.splat.sum(1).ravel(), rtol=1e-6)
    for value in (0.0, 0.3, 1.0):
        np.testing.assert_allclose(refine(image, np.full(truth.shape, value)), value, atol=1e-6)


def test_refining_follows_the_edges():
    image, truth = blocks()
    coarse = np.zeros_like(truth)
    coarse[8:32, 8:40] = True
    found = refine(image, coarse.astype(float)) > 0.5

    def overlap(mask: np.ndarray) -> float:
        return (mask & truth).sum() / (mask | truth).sum()

    assert overlap(coarse) < 0.8
    assert overlap(found) > 0.95
    with pytest.raises(ValueError, match="one size"):
        refine(image, np.zeros((3, 3)))


def test_binary_masks_are_one_piece_without_holes_even_if_larger_than_the_background():
    solution = np.full((10, 10), 0.9)
    solution[0] = solution[:, 0] = 0.1
    solution[5, 5] = 0.2
    solution[0, 5] = 0.1
    found = binarise(solution, np.zeros((10, 10), bool))
    assert found.sum() == 81
    coarse = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(binarise(np.zeros((4, 4)), coarse), coarse)


class CudaRules(TorchDispatchMode):
    """What CUDA refuses and fake tensors let pass: an index on another device than the tensor, unless on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.index.Tensor:
            for index in args[1]:
                if index is not None and index.device.type != "cpu" and index.device != args[0].device:
                    raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
        return func(*args, **(kwargs or {}))


def test_lost_votes_on_a_device_in_the_order_that_the_cpu_gave():
    products, order = torch.randn(12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(12)
    expected = sum(products[i] for i in range(5) if products[3, i] > 0)
    torch.testing.assert_close(votes(products, order, 3, 5), expected)
    with FakeTensorMode(shape_env=ShapeEnv()), CudaRules():
        on_device = votes(torch.empty(12, 12, device="cuda"), torch.empty(12, dtype=torch.int64), 3, 5)
    assert on_device.device.type == "cuda"
    assert on_device.shape == (12,)

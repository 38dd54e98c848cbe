"""The same numbers as the reference implementations of the dense evaluations, through public functions.

Every size, count and parameter is read from the files, so the same tests run on another folder of them.
"""

import json

import numpy as np
import pytest
import torch

from dino_dense import tokens
from dino_dense.clustering import Components, cluster, fit_components, fit_scaling
from dino_dense.matching import points
from dino_dense.matching.rules import centered_in_square, scaled_to_square
from dino_dense.matching.tracks import query_features, track_points
from dino_dense.neighbors import incontext
from dino_dense.neighbors.exact import nearest
from dino_dense.probes import depth as depth_head
from dino_dense.probes import readout
from dino_dense.probes.depth_training import border_box
from dino_dense.probes.protocol import DepthProbe
from tasks.scores import depth as depth_scores
from tasks.scores import keypoints, matching, segmentation, tracking
from tests.device import chosen
from tests.reference_files import reference


def tensor(arrays, name: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(arrays[name]))


def there(arrays, name: str) -> torch.Tensor:
    """An array on the device that the tests compute on, as the tasks have features there."""
    return tensor(arrays, name).to(chosen())


def bits(arrays, name: str, width: int) -> np.ndarray:
    return np.unpackbits(arrays[name], axis=-1)[..., :width].astype(bool)


# --- incontext ---


def unit_rows(features: torch.Tensor) -> torch.Tensor:
    return features / features.norm(dim=-1, keepdim=True)


def memory_of(arrays, case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [M, D] of length 1 and their labels [M, C], sampled where the case bounds the memory."""
    histograms = incontext.patch_histograms(
        tensor(arrays, f"{case}.train_labels"), int(arrays[f"{case}.patch"]), int(arrays[f"{case}.num_classes"])
    )
    np.testing.assert_allclose(histograms.numpy(), arrays[f"{case}.patch_histograms"], atol=1e-6)
    features = tensor(arrays, f"{case}.train_features")  # [epochs, n, hw, D]
    labels = histograms.flatten(1, 2).expand(len(features), -1, -1, -1)
    if int(arrays[f"{case}.memory_size"]) > 0:
        scores = incontext.patch_scores(histograms)
        np.testing.assert_array_equal(scores.numpy(), arrays[f"{case}.patch_scores"])
        draws, count = tensor(arrays, f"{case}.uniform"), int(arrays[f"{case}.num_per_image"])
        sampled = torch.stack([incontext.sample_patches(scores, draw, count) for draw in draws])
        np.testing.assert_array_equal(sampled.numpy(), arrays[f"{case}.sampled"])
        features = features.gather(2, sampled[..., None].expand(-1, -1, -1, features.shape[-1]))
        labels = labels.gather(2, sampled[..., None].expand(-1, -1, -1, labels.shape[-1]))
        np.testing.assert_allclose(labels.flatten(0, 2).numpy(), arrays[f"{case}.memory_labels"], atol=1e-6)
    return unit_rows(features.flatten(0, 2)), labels.flatten(0, 2)


@pytest.mark.parametrize("case", ["voc", "bounded", "ade"])
def test_incontext(case: str, device: torch.device):
    arrays = reference("incontext")
    memory, labels = (part.to(device) for part in memory_of(arrays, case))
    assert len(memory) == int(arrays[f"{case}.memory_rows"])
    validation, k = there(arrays, f"{case}.val_features"), int(arrays[f"{case}.k"])
    queries = validation.flatten(0, 1)
    rows = nearest(queries, memory, k).indices.sort(dim=1).values.cpu()
    np.testing.assert_array_equal(rows.numpy(), np.sort(arrays[f"{case}.neighbours"], axis=1))
    soft = incontext.soft_labels(queries, memory, labels, neighbors=k, temperature=float(arrays[f"{case}.beta"]))
    by_image = soft.view(*validation.shape[:2], -1)
    np.testing.assert_allclose(by_image.cpu().numpy(), arrays[f"{case}.soft_labels"], atol=1e-4)
    truth = arrays[f"{case}.val_labels"]
    side = truth.shape[1] // int(arrays[f"{case}.patch"])
    predicted = incontext.class_map(by_image, (side, side), truth.shape[1:]).cpu().numpy()
    expected = arrays[f"{case}.prediction"]
    safe = bits(arrays, f"{case}.safe_pixels", truth.shape[2])
    np.testing.assert_array_equal(predicted[safe], expected[safe])
    assert (predicted == expected).mean() >= 0.999


@pytest.mark.parametrize("case", ["voc", "bounded", "ade"])
def test_incontext_scores(case: str):
    arrays = reference("incontext")
    classes, ignored = int(arrays[f"{case}.num_classes"]), int(arrays[f"{case}.ignore_index"])
    truth, predicted = arrays[f"{case}.val_labels"], arrays[f"{case}.prediction"]
    counts = matching.count_clusters(predicted, truth, classes, classes, ignored)
    np.testing.assert_array_equal(counts, arrays[f"{case}.confusion"])
    mappings = {
        "identity": np.arange(classes),
        "hungarian": matching.match_hungarian(counts),
        "many_to_one_precision": matching.match_by_precision(counts),
    }
    used = counts.sum(0) > 0
    np.testing.assert_array_equal(mappings["hungarian"][used], arrays[f"{case}.hungarian_map"][used])
    for name, mapping in mappings.items():
        iou = matching.iou_of_all_classes(matching.merge_clusters(counts, mapping))
        np.testing.assert_allclose(iou, arrays[f"{case}.iou_{name}"], atol=1e-9)
        assert iou.mean() == pytest.approx(float(arrays[f"{case}.miou_{name}"]), abs=1e-9)


def macro_jaccard(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Mean IoU over the labels in either map (CAPI)."""
    labels = np.union1d(predicted, truth)
    pairs = [(predicted == label, truth == label) for label in labels]
    return float(np.mean([(ours & theirs).sum() / (ours | theirs).sum() for ours, theirs in pairs]))


def test_incontext_capi():
    arrays = reference("incontext")
    patch, ignored = int(arrays["capi.patch"]), tensor(arrays, "capi.ignore_labels")
    scaling = fit_scaling(tensor(arrays, "capi.train_features").flatten(0, 1))

    def split(*names: str) -> tuple[torch.Tensor, torch.Tensor]:
        features = torch.cat([tensor(arrays, f"capi.{name}_features") for name in names])
        labels = torch.cat([tensor(arrays, f"capi.{name}_labels") for name in names])
        kept = ~torch.isin(incontext.modal_label(labels, patch), ignored).flatten()
        return scaling.apply(features.flatten(0, 1))[kept], incontext.patch_labels(labels, patch)[kept]

    def predict(name: str, memory: tuple[torch.Tensor, torch.Tensor], k: int, cosine: bool) -> np.ndarray:
        queries = scaling.apply(tensor(arrays, f"capi.{name}_features").flatten(0, 1))
        side = arrays[f"capi.{name}_labels"].shape[1] // patch
        votes = incontext.vote_per_pixel(queries, *memory, neighbors=k, cosine=cosine)
        return incontext.pixel_map(votes, (side, side), patch).numpy()

    train, train_and_val = split("train"), split("train", "val")
    assert len(train_and_val[0]) == int(arrays["capi.kept_rows"])
    grid = list(zip(arrays["capi.grid_k"].tolist(), arrays["capi.grid_cosine"].tolist(), strict=True))
    valid = ~np.isin(arrays["capi.val_labels"], ignored)
    scores = [
        macro_jaccard(predict("val", train, k, cosine)[valid], arrays["capi.val_labels"][valid]) for k, cosine in grid
    ]
    np.testing.assert_allclose(scores, arrays["capi.grid_val_miou"], atol=1e-3)
    best = grid[int(np.argmax(scores))]
    assert best == (int(arrays["capi.best_k"]), bool(arrays["capi.best_cosine"]))
    predicted = predict("test", train_and_val, *best)
    assert (predicted == arrays["capi.test_prediction"]).mean() >= 0.995
    valid = ~np.isin(arrays["capi.test_labels"], ignored)
    stored, truth = arrays["capi.test_prediction"][valid], arrays["capi.test_labels"][valid]
    assert macro_jaccard(stored, truth) == pytest.approx(float(arrays["capi.test_miou"]), abs=1e-9)
    assert (stored == truth).mean() == pytest.approx(float(arrays["capi.test_acc"]), abs=1e-9)


# --- clustering ---


@pytest.mark.parametrize("case", ["hungarian_voc", "hungarian_ade", "precision_voc", "precision_big"])
def test_cluster_matching(case: str):
    arrays = reference("clustering")
    classes, count = int(arrays[f"{case}.num_classes"]), int(arrays[f"{case}.num_clusters"])
    ignored = int(arrays[f"{case}.ignore_index"])
    clusters, truth = arrays[f"{case}.clusters_eval"], arrays[f"{case}.gt_eval"]
    counts = matching.count_clusters(clusters, truth, classes, count, ignored)
    assert counts.sum() == int(arrays[f"{case}.pixels"])
    many_to_one = bool(arrays[f"{case}.many_to_one"])
    scores = matching.precision_scores(counts) if many_to_one else matching.iou_scores(counts)
    np.testing.assert_allclose(scores, arrays[f"{case}.score_matrix"], atol=1e-12)
    mapping = matching.match_by_precision(counts) if many_to_one else matching.match_hungarian(counts)
    np.testing.assert_array_equal(mapping, arrays[f"{case}.cluster_to_class"])
    merged = matching.merge_clusters(counts, mapping)
    hit = np.diag(merged)
    np.testing.assert_array_equal(hit, arrays[f"{case}.tp"])
    np.testing.assert_array_equal(merged.sum(0) - hit, arrays[f"{case}.fp"])
    np.testing.assert_array_equal(merged.sum(1) - hit, arrays[f"{case}.fn"])
    iou = matching.iou_of_all_classes(merged)
    np.testing.assert_allclose(iou, arrays[f"{case}.iou"], atol=1e-12)
    assert iou.mean() == pytest.approx(float(arrays[f"{case}.miou"]), abs=1e-12)


def test_standardized_components():
    arrays = reference("clustering")
    features = tensor(arrays, "features.features")
    scaling = fit_scaling(features)
    np.testing.assert_allclose(scaling.mean.numpy(), arrays["features.scaler_mean"], rtol=1e-9)
    np.testing.assert_allclose(scaling.scale.numpy(), arrays["features.scaler_scale"], rtol=1e-9)
    standardized = scaling.apply(features)
    np.testing.assert_allclose(standardized.numpy(), arrays["features.standardised"], atol=1e-5)
    components: Components = fit_components(standardized, int(arrays["features.pca_dim"]))
    ours, theirs = components.apply(standardized).numpy(), arrays["features.transformed"]
    signs = np.sign((ours * theirs).sum(0))
    assert (np.abs(ours * signs - theirs) <= 2e-3 * theirs.std(0)).all()


def test_kmeans_reaches_the_objective():
    """The labels agree where the reference is at the same optimum; one file holds a worse optimum than ours."""
    arrays = reference("clustering")
    k, objective = int(arrays["kmeans.k"]), float(arrays["kmeans.objective"])
    clusters = cluster(tensor(arrays, "kmeans.features"), k, seed=0)
    assert clusters.objective <= 1.02 * objective
    if clusters.objective >= 0.98 * objective:
        counts = matching.count_clusters(clusters.labels.numpy(), arrays["kmeans.labels"], k, k, ignored=-1)
        renamed = matching.merge_clusters(counts, matching.match_hungarian(counts))
        assert np.diag(renamed).sum() >= 0.98 * counts.sum()


# --- depth ---


@pytest.mark.parametrize("spacing", ["linear", "log"])
@pytest.mark.parametrize("weighting", ["linear", "softmax", "sigmoid"])
def test_depth_of_bins(spacing: depth_head.Spacing, weighting: depth_head.Weighting, device: torch.device):
    arrays = reference("depth")
    logits = there(arrays, "bins.logits")
    low, high = float(arrays["bins.min_depth"]), float(arrays["bins.max_depth"])
    depths = depth_head.bin_depths(logits.shape[1], low, high, spacing)
    np.testing.assert_allclose(depths.numpy(), arrays[f"bins.bins_{spacing}"], rtol=1e-5)
    ours = depth_head.expected_depth(logits, depths.to(device), weighting)
    np.testing.assert_allclose(ours.cpu().numpy(), arrays[f"bins.{spacing}_{weighting}.depth"], rtol=1e-5)


@pytest.mark.usefixtures("device")
def test_depth_of_one_output():
    arrays = reference("depth")
    logits, low = there(arrays, "bins.logits")[:, :1], float(arrays["bins.min_depth"])
    ours = depth_head.regressed_depth(logits, low)
    np.testing.assert_allclose(ours.cpu().numpy(), arrays["bins.regression.depth"], rtol=1e-5)


def test_training_box_of_nyu():
    arrays = reference("depth")
    rows, columns = border_box(DepthProbe().border, arrays["eval.gt_mm"].shape[1:])
    assert [rows.stop - rows.start, columns.stop - columns.start] == arrays["eval.nyu_train_crop_hw"].tolist()


@pytest.mark.usefixtures("device")
def test_sequence_of_sig_losses():
    """The variance joins after the warm-up of three calls."""
    arrays = reference("depth")
    predicted, truth = there(arrays, "sigloss.pred"), there(arrays, "sigloss.gt")
    highest = float(arrays["sigloss.max_depth"])
    ours = [depth_head.sig_loss(predicted, truth, highest, warm_up=call < 3).item() for call in range(5)]
    np.testing.assert_allclose(ours, arrays["sigloss.sequence"], atol=1e-6)


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("stage", ["warm_up", "full"])
def test_sig_loss(stage: str):
    arrays = reference("depth")
    predicted = there(arrays, "sigloss.pred").requires_grad_()
    loss = depth_head.sig_loss(
        predicted, there(arrays, "sigloss.gt"), float(arrays["sigloss.max_depth"]), warm_up=stage == "warm_up"
    )
    assert loss.item() == pytest.approx(float(arrays[f"sigloss.{stage}.loss"]), abs=1e-6)
    loss.backward()
    np.testing.assert_allclose(predicted.grad.cpu().numpy(), arrays[f"sigloss.{stage}.grad"], atol=1e-6)


def test_depth_metrics():
    arrays = reference("depth")
    low, high = float(arrays["eval.min_depth"]), float(arrays["eval.max_depth"])
    logits, truth = tensor(arrays, "eval.logits"), arrays["eval.gt_mm"].astype(np.float32) / 1000
    size = truth.shape[1:]
    crop = depth_scores.eigen_mask(size)
    masks = np.stack([depth_scores.valid_pixels(depth, low, high, crop) for depth in truth])
    np.testing.assert_array_equal(masks, bits(arrays, "eval.eigen_mask", size[1]))
    depths = depth_head.bin_depths(logits.shape[2], low, high)
    images, flipped = (depth_head.expected_depth(logits[:, index], depths) for index in (0, 1))
    predictions = {"tta": depth_head.mean_of_flips(images, flipped), "single": images}
    for name, small in predictions.items():
        large = depth_head.at_size(small, size, low, high)[:, 0].numpy()
        if name == "tta":
            np.testing.assert_allclose(large[:, ::5, ::5], arrays["eval.tta.pred_every_5th"], atol=1e-4)
        for region, mask in (("nyu_eigen", crop), ("full", None)):
            rows = [
                depth_scores.depth_errors(p, t, depth_scores.valid_pixels(t, low, high, mask))
                for p, t in zip(large, truth, strict=True)
            ]
            for metric in depth_scores.METRICS:
                tolerance = 1e-3 if metric.startswith("a") and metric != "abs_rel" else 1e-4
                ours = [row[metric] for row in rows]
                key = f"eval.{name}.{region}.{metric}"
                np.testing.assert_allclose(ours, arrays[f"{key}.per_image"], atol=tolerance, err_msg=key)
                assert np.nanmean(ours) == pytest.approx(float(arrays[key]), abs=tolerance)


# --- tracking ---


def metric_cases() -> list[str]:
    return sorted({key.split(".")[0] for key in reference("tracking").files if key.startswith("metrics")})


@pytest.mark.parametrize("mode", ["first", "strided"])
def test_tracking_metrics(mode: tracking.QueryMode):
    arrays = reference("tracking")
    for case in metric_cases():
        key = f"{case}.{mode}"
        queries = tracking.query_tracks(arrays[f"{case}.points"] * 256.0, arrays[f"{case}.occluded"], mode)
        np.testing.assert_array_equal(queries.points, arrays[f"{key}.query_points"][0])
        np.testing.assert_array_equal(queries.targets, arrays[f"{key}.target_points"][0])
        np.testing.assert_array_equal(queries.occluded, arrays[f"{key}.occluded"][0])
        if mode == "strided":
            np.testing.assert_array_equal(queries.tracks, arrays[f"{key}.trackgroup"][0])
        scored = tracking.scored_frames(queries.points, queries.occluded.shape[1], mode)
        tracks, hidden = arrays[f"{key}.pred_tracks"][0], arrays[f"{key}.pred_occluded"][0]
        for prefix, occluded in ((key, hidden), (f"{key}.all_visible", np.zeros_like(hidden))):
            scores = tracking.tracking_scores(queries.targets, queries.occluded, tracks, occluded, scored)
            for name, value in scores.items():
                assert value == pytest.approx(arrays[f"{prefix}.{name}"][0], abs=1e-9), f"{prefix}.{name}"
        by_track = tracking.tracking_scores(queries.targets, queries.occluded, tracks, hidden, scored, by_track=True)
        for name in ("occlusion_accuracy", "pts_within_4", "jaccard_4"):
            np.testing.assert_allclose(by_track[name], arrays[f"{key}.trackwise_{name}"][0], atol=1e-9)


@pytest.mark.usefixtures("device")
def test_zero_shot_tracks():
    arrays = reference("tracking")
    cases = sorted({key.split(".")[0] for key in arrays.files if key.startswith("zero_shot")})
    for case in cases:
        height, width = arrays[f"{case}.image_hw"].tolist()
        mode = str(arrays[f"{case}.mode"])
        points = arrays[f"{case}.points"] * np.array([width, height])
        queries = tracking.query_tracks(points, arrays[f"{case}.occluded"], mode)  # type: ignore[arg-type]
        np.testing.assert_allclose(queries.points, arrays[f"{case}.query_points"][0], atol=1e-4)
        features = there(arrays, f"{case}.features")
        starts = query_features(features, torch.from_numpy(queries.points).float(), (height, width))
        np.testing.assert_allclose(starts.cpu().numpy(), arrays[f"{case}.query_features"], atol=1e-5)
        tracks, cosine = track_points(features, starts, (height, width))
        np.testing.assert_allclose(cosine.cpu().numpy(), arrays[f"{case}.best_cosine"], atol=1e-5)
        np.testing.assert_allclose(tracks.cpu().numpy(), arrays[f"{case}.pred_tracks"][0], atol=1e-4)


# --- diagnostics ---


def test_effective_ranks():
    arrays = reference("diagnostics")
    embeddings = tensor(arrays, "rankme.embeddings")
    for eps, value in (("eps", "value"), ("paper_eps", "paper_value")):
        ours = tokens.rank_me(embeddings, float(arrays[f"rankme.{eps}"]))
        assert ours == pytest.approx(float(arrays[f"rankme.{value}"]), rel=1e-3)
    views = tensor(arrays, "lidar.embeddings")
    ours = tokens.lidar(views, float(arrays["lidar.delta"]), float(arrays["lidar.epsilon"]))
    assert ours == pytest.approx(float(arrays["lidar.value"]), rel=1e-3)


def test_position_components():
    arrays = reference("diagnostics")
    components = tokens.position_components(
        tensor(arrays, "insid3.blank_features")[0], int(arrays["insid3.components"])
    )
    np.testing.assert_allclose((components @ components.T).numpy(), arrays["insid3.projector"], atol=1e-4)
    debiased = tokens.without_components(tensor(arrays, "insid3.features"), components)
    np.testing.assert_allclose(debiased.numpy(), arrays["insid3.debiased"], atol=1e-4)


# --- correspondence ---


def annotation(arrays, pair: int) -> dict:
    return json.loads(str(arrays[f"pair{pair}.json"]))


def longest(box: list[int]) -> int:
    return max(box[2] - box[0], box[3] - box[1])


def of_pairs(arrays):
    """(number, annotation, source row, target row) of each pair."""
    for pair in range(int(arrays["num_pairs"])):
        source, target = arrays[f"pair{pair}.index"].tolist()
        yield pair, annotation(arrays, pair), source, target


def test_probe3d_matches():
    arrays = reference("correspondence")
    side, maps = int(arrays["size"]), tensor(arrays, "probe3d_features")
    for pair, note, source, target in of_pairs(arrays):
        key = f"pair{pair}.probe3d"
        starts, ends = (
            scaled_to_square(note[f"{end}_kps"], note[f"{end}_imsize"][1::-1], side) for end in ("src", "trg")
        )
        np.testing.assert_array_equal(starts, arrays[f"{key}.src_kps"][:, :2])
        np.testing.assert_array_equal(ends, arrays[f"{key}.trg_kps"][:, :2])
        cells = points.best_cells(points.sampled_at_corners(maps[source], torch.from_numpy(starts), side), maps[target])
        np.testing.assert_array_equal(cells.numpy(), arrays[f"{key}.cell"])
        scale = longest(note["trg_bndbox"]) / max(note["trg_imsize"][:2])
        assert scale == pytest.approx(float(arrays[f"{key}.thresh_scale"]))
        places = cells.numpy() / int(arrays["grid"])
        error = keypoints.distances(places, ends / side) / scale
        np.testing.assert_allclose(error, arrays[f"{key}.error"], atol=1e-5)


def test_dift_matches():
    arrays = reference("correspondence")
    maps, alphas = tensor(arrays, "dift_features"), arrays["alphas"].tolist()
    hits: dict[float, list[np.ndarray]] = {alpha: [] for alpha in alphas}
    for pair, note, source, target in of_pairs(arrays):
        key = f"pair{pair}.dift"
        large = [
            points.at_pixels(maps[row], (note[f"{end}_imsize"][1], note[f"{end}_imsize"][0]))
            for row, end in ((source, "src"), (target, "trg"))
        ]
        queries = points.pixel_features(large[0], torch.tensor(note["src_kps"]))
        pixels = points.best_cells(queries, large[1]).numpy()
        np.testing.assert_array_equal(pixels, arrays[f"{key}.pixel"])
        distance = keypoints.distances(pixels, np.array(note["trg_kps"], float))
        np.testing.assert_allclose(distance, arrays[f"{key}.distance"], atol=1e-9)
        limit = longest(note["trg_bndbox"])
        assert limit == float(arrays[f"{key}.threshold"])
        for alpha in alphas:
            hits[alpha].append(keypoints.hits(distance, limit, alpha, strict=False))
            assert hits[alpha][-1].mean() == pytest.approx(float(arrays[f"{key}.pck@{alpha}"]), abs=1e-6)
    categories = [annotation(arrays, pair)["category"] for pair in range(int(arrays["num_pairs"]))]
    for alpha, rows in hits.items():
        scores = keypoints.pck(rows, categories)
        for name, prefix in [*((c, f"class.{c}") for c in arrays["categories"].tolist()), ("all", "all")]:
            for kind in ("per_image", "per_point"):
                expected = float(arrays[f"{prefix}.dift.{kind}@{alpha}"])
                assert scores[name][kind] == pytest.approx(expected, abs=1e-6), (name, kind, alpha)


@pytest.mark.parametrize("kind", ["geoaware", "geoaware_soft"])
def test_geoaware_matches(kind: str):
    arrays = reference("correspondence")
    maps, side = tensor(arrays, "geoaware_features"), int(arrays["anno_size"])
    grid, alphas = int(arrays["num_patches"]), arrays["alphas"].tolist()
    stride = side // grid
    hits: dict[float, list[np.ndarray]] = {alpha: [] for alpha in alphas}
    for pair, note, source, target in of_pairs(arrays):
        key = f"pair{pair}.{kind}"
        starts, ends = (
            centered_in_square(note[f"{end}_kps"], note[f"{end}_imsize"][1::-1], side) for end in ("src", "trg")
        )
        np.testing.assert_allclose(starts, arrays[f"{key}.src_kps"], atol=1e-4)
        cells = torch.from_numpy(starts / stride).long()
        np.testing.assert_array_equal((cells[:, 1] * grid + cells[:, 0]).numpy(), arrays[f"{key}.patch_index"])
        queries = points.pixel_features(maps[source], cells)
        match = points.soft_cells if kind == "geoaware_soft" else points.best_cells
        predicted = match(queries, maps[target]).numpy() * stride + stride // 2
        np.testing.assert_allclose(predicted, arrays[f"{key}.pred"], atol=1e-3 if kind == "geoaware_soft" else 0)
        limit = longest(note["trg_bndbox"]) * side / max(note["trg_imsize"][:2])
        assert limit == pytest.approx(float(arrays[f"{key}.threshold"]))
        distance = keypoints.distances(predicted, ends)
        np.testing.assert_allclose(distance / limit, arrays[f"{key}.error"], atol=1e-4)
        for alpha in alphas:
            hits[alpha].append(keypoints.hits(distance, limit, alpha, strict=True))
            assert hits[alpha][-1].mean() == pytest.approx(float(arrays[f"{key}.pck@{alpha}"]), abs=1e-6)
    categories = [annotation(arrays, pair)["category"] for pair in range(int(arrays["num_pairs"]))]
    for alpha, rows in hits.items():
        scores = keypoints.pck(rows, categories)
        for name, prefix in [*((c, f"class.{c}") for c in arrays["categories"].tolist()), ("all", "all")]:
            for measure in ("per_image", "per_point"):
                stored = f"{prefix}.{kind}.{measure}@{alpha}"
                if stored in arrays.files:
                    assert scores[name][measure] == pytest.approx(float(arrays[stored]), abs=1e-4), stored


# --- segmentation_probe ---


@pytest.mark.parametrize("kept", ["reduce_zero", "keep_zero"])
def test_segmentation_areas(kept: str):
    arrays = reference("segmentation_probe")
    labels, predictions = arrays["areas.labels"], arrays["areas.predictions"]
    if kept == "reduce_zero":
        labels = segmentation.without_zero(labels)
    classes = arrays[f"areas.{kept}.iou"].shape[0]
    areas = np.stack([segmentation.areas(p, t, classes) for p, t in zip(predictions, labels, strict=True)])
    np.testing.assert_array_equal(areas, arrays[f"areas.{kept}.areas"])
    scores = segmentation.area_scores(areas.sum(0))
    np.testing.assert_allclose(scores.pop("iou"), arrays[f"areas.{kept}.iou"], atol=1e-6)
    for name, value in scores.items():
        assert np.nanmean(value) == pytest.approx(float(arrays[f"areas.{kept}.{name}"]), abs=1e-6), name


def stand_in(arrays, weight: torch.Tensor, bias: torch.Tensor, ramp: torch.Tensor):
    """The reference's stand-in for a network: a window -> logits of its size."""
    side = int(arrays["slide.dummy_grid"])
    t = torch.linspace(-1, 1, side)

    def predict(window: torch.Tensor) -> torch.Tensor:
        small = torch.nn.functional.interpolate(window, (side, side), mode="bilinear", align_corners=False)
        logits = torch.einsum("ck,bkhw->bchw", weight, small) + bias[:, None, None]
        logits = logits + ramp[:, 0, None, None] * t[:, None] + ramp[:, 1, None, None] * t
        return torch.nn.functional.interpolate(logits, window.shape[-2:], mode="bilinear", align_corners=False)

    return predict


def test_sliding_windows():
    arrays = reference("segmentation_probe")
    predict = stand_in(arrays, *(tensor(arrays, f"slide.{name}") for name in ("weight", "bias", "ramp")))
    crop, stride = int(arrays["slide.crop"]), int(arrays["slide.stride"])
    for number in range(int(arrays["slide.num_images"])):
        key = f"slide.image{number}"
        image, size = tensor(arrays, f"{key}.input"), tuple(arrays[f"{key}.target_hw"].tolist())
        calls = []
        logits = readout.slide_logits(lambda window: calls.append(1) or predict(window), image, crop, stride)  # noqa: B023
        assert len(calls) == int(arrays[f"{key}.windows"])
        np.testing.assert_allclose(logits[0, :, ::4, ::4].numpy(), arrays[f"{key}.slide_logits_every_4th"], atol=1e-4)
        shares = readout.class_shares(logits, size)
        np.testing.assert_allclose(shares[0, :, ::4, ::4].numpy(), arrays[f"{key}.softmax_every_4th"], atol=1e-5)
        safe = bits(arrays, f"{key}.safe", size[1])
        np.testing.assert_array_equal(shares[0].argmax(0).numpy()[safe], arrays[f"{key}.prediction"][safe])
        flipped = readout.class_shares(readout.slide_logits(predict, image.flip(-1), crop, stride), size).flip(-1)
        both = ((shares + flipped) / 2)[0].argmax(0).numpy()
        assert (both == arrays[f"{key}.tta_prediction"]).mean() >= 0.999


@pytest.mark.parametrize("case", ["neco_voc", "neco_ade"])
def test_neco_probe(case: str, device: torch.device):
    arrays = reference("segmentation_probe")
    tokens_of_images = there(arrays, f"{case}.tokens")
    side = round(tokens_of_images.shape[1] ** 0.5)
    maps = tokens_of_images.transpose(1, 2).unflatten(2, (side, side))
    ignored, evaluation = int(arrays[f"{case}.ignore_index"]), int(arrays[f"{case}.eval_size"])
    head = torch.nn.Conv2d(maps.shape[1], len(arrays[f"{case}.bias"]), 1).to(device)
    with torch.no_grad():
        head.weight.copy_(tensor(arrays, f"{case}.weight")[..., None, None])
        head.bias.copy_(tensor(arrays, f"{case}.bias"))
    labels = readout.nearest_labels(tensor(arrays, f"{case}.labels"), evaluation)
    np.testing.assert_array_equal(labels.numpy(), arrays[f"{case}.gt_eval"])
    logits = readout.upsampled_logits(head, maps, evaluation)
    loss = torch.nn.functional.cross_entropy(logits, labels.long().to(device), ignore_index=ignored)
    assert loss.item() == pytest.approx(float(arrays[f"{case}.loss"]), abs=1e-5)
    loss.backward()
    np.testing.assert_allclose(head.weight.grad[..., 0, 0].cpu().numpy(), arrays[f"{case}.grad_weight"], atol=1e-5)
    np.testing.assert_allclose(head.bias.grad.cpu().numpy(), arrays[f"{case}.grad_bias"], atol=1e-5)
    safe, stored = bits(arrays, f"{case}.safe", evaluation), arrays[f"{case}.prediction"]
    np.testing.assert_array_equal(logits.argmax(1).cpu().numpy()[safe], stored[safe])
    classes = len(arrays[f"{case}.bias"])
    counts = matching.count_clusters(stored, arrays[f"{case}.gt_eval"], classes, classes, ignored)
    hit = np.diag(counts)
    np.testing.assert_array_equal(hit, arrays[f"{case}.tp"])
    np.testing.assert_array_equal(counts.sum(0) - hit, arrays[f"{case}.fp"])
    np.testing.assert_array_equal(counts.sum(1) - hit, arrays[f"{case}.fn"])
    assert matching.iou_of_all_classes(counts).mean() == pytest.approx(float(arrays[f"{case}.miou"]), abs=1e-9)

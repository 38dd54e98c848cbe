"""A number that changes for the same input has another version: else what the old one made would live on.

Each part of `dino_dense.versions` and each reader of backbones gives a few numbers here on fixed input. Where they
change with a purpose, raise the part's version and write both into EXPECTED; the failing test prints them.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.segmentation import LabeledPixels
from dino_dense import clustering, load_backbone, tokens
from dino_dense.backbone.bytes import times_reciprocal
from dino_dense.backbone.families import readers
from dino_dense.distributed import World
from dino_dense.matching import rules, tracks
from dino_dense.objects.attention import attention_masks
from dino_dense.objects.cuts import maskcut, tokencut
from dino_dense.objects.lost import lost
from dino_dense.probes.classes import Evaluation, HeadGrid, hold_out, logistic_regressions, random_tenth
from dino_dense.probes.depth_training import predict_depth, train_depth
from dino_dense.probes.pixels import predict, train_head
from dino_dense.probes.protocol import DepthProbe, PixelProbe
from dino_dense.propagation import joints
from dino_dense.propagation.protocol import SquashedProtocol
from dino_dense.propagation.squashed import propagate
from dino_dense.propagation.video import Frame, VideoPropagator
from dino_dense.versions import VERSIONS
from tasks.finetuning.config import FinetuneConfig
from tasks.finetuning.recipe import build_mixer
from tasks.harness.session import DataFacts, Session
from tasks.images.attacks import apply_attack
from tasks.images.descriptors import fit_whitening
from tasks.images.features import Preprocessing, extract_pieces
from tasks.knn import knn_votes
from tasks.scores import boxes, depth, jf, keypoints, pose, retrieval, saliency, segmentation, tracking
from tasks.scores.classification import hits
from tasks.semantic.memory import Builder, predict_squares
from tasks.semantic.protocol import IncontextProtocol
from tasks.semantic.readings import mapping_of, read_matrices
from tasks.semantic.splits import LabeledSplits
from tests.color_backbone import PROTOCOL, color_backbone

Numbers = list[float]
NETWORKS = {"VitReader": "vit_micro_patch8_64", "EvaReader": "vit_small_patch16_dinov3", "StageReader": "resnet18"}


def drawn(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape, dtype=np.float32))


def picture(side: int = 80) -> Image.Image:
    rows, columns = np.mgrid[:side, :side]
    waves = [127 + 120 * np.sin(rows / (4 + k)) * np.cos(columns / (9 - k)) for k in range(3)]
    return Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))


def scene() -> torch.Tensor:
    """Features [C, 8, 8] of two objects on a ground."""
    kinds = torch.zeros(8, 8, dtype=torch.long)
    kinds[1:4, 1:4], kinds[4:7, 5:7] = 1, 2
    return torch.eye(6)[kinds].permute(2, 0, 1) + 0.05 * drawn(6, 8, 8)


def reader(name: str) -> Numbers:
    backbone = load_backbone(f"random:{NETWORKS[name]}")
    found = backbone.extract(drawn(1, 3, 64, 64), backbone.provides)
    return [float(value.double().square().mean()) for _, value in sorted(found.by_kind.items())]


def image_features() -> Numbers:
    pixels = times_reciprocal(Preprocessing(64, 32).transform()(picture())[None])
    found = extract_pieces(load_backbone("random:vit_micro_patch8_64"), pixels, ("cls1", "mean", "gem"))
    return [float(pixels.mean()), *(float(value.square().mean()) for value in found.values())]


def propagation() -> Numbers:
    frames = [np.asarray(Image.fromarray(np.roll(np.asarray(picture(64)), 4 * k, axis=1))) for k in range(3)]
    first = np.zeros((64, 64), np.uint8)
    first[16:40, 8:32] = 1
    given = [Frame(frame, first if index == 0 else None) for index, frame in enumerate(frames)]
    masks = VideoPropagator(color_backbone(), PROTOCOL, (64, 64), [1]).run(given)
    return [float(mask.sum()) for _, mask in masks]


def objects() -> Numbers:
    features = scene()
    found = [tokencut(features), lost(features, k=10), *maskcut(features)]
    return [*(float(one.mask.sum()) for one in found), float(attention_masks(drawn(2, 8, 8)).sum())]


def class_probe() -> Numbers:
    images = Evaluation(drawn(30, 5), torch.arange(30) % 3)
    heads = HeadGrid([0.1, 0.5], 5, 3, 0.9, seed=0)
    losses = [heads.step(images.features, images.labels, 0.5) for _ in range(4)]
    ((scores,),), _ = logistic_regressions(images, [1.0], [images.features])
    held = [*hold_out(images.labels, 0.1, seed=0)[1], *random_tenth(30)[1]]
    return [*losses[-1].tolist(), float(scores.abs().mean()), float(sum(held))]


class Striped:
    """A picture of two classes."""

    name = "striped"

    def read(self) -> tuple[Image.Image, np.ndarray]:
        ids = np.zeros((80, 80), np.uint8)
        ids[:, 40:] = 1
        return picture(), ids


def pixel_probe(tmp_path: Path) -> Numbers:
    config = PixelProbe(steps=3, batch_size=2, crop=32, lr=0.01)
    options = {"state": tmp_path / "state", "world": World(), "seed": 0, "workers": 0}
    backbone = load_backbone("random:vit_micro_patch8_64")
    trained = train_head(backbone, config, [Striped()], 2, **options)  # type: ignore[arg-type]
    mask = predict(backbone, trained.head, picture(), replace(config, crop=64))
    return [*trained.curve["loss"], round(float(mask.mean()), 1)]


class Sloping:
    """A picture whose depth grows to the right."""

    name = "sloping"

    def read(self) -> tuple[Image.Image, np.ndarray]:
        return picture(), np.tile(np.linspace(1, 4, 80, dtype=np.float32), (80, 1))


def depth_probe(tmp_path: Path) -> Numbers:
    config = DepthProbe(steps=3, batch_size=2, crop=(40, 48), border=(0, 0, 640, 480), lr=0.01, bins=16)
    options = {"state": tmp_path / "state", "world": World(), "seed": 0, "workers": 0}
    backbone = load_backbone("random:vit_micro_patch8_64")
    head, curve = train_depth(backbone, config, [Sloping()], **options)  # type: ignore[arg-type]
    return [*curve["loss"], float(predict_depth(backbone, head, picture(), config).mean())]


def fine_tuning() -> Numbers:
    images, targets = build_mixer(FinetuneConfig(mixing_batch=4), 3, seed=0)(
        drawn(8, 3, 8, 8), torch.arange(8) % 3, torch.arange(8), 5
    )
    return [float(images.square().mean()), float(targets.square().mean())]


def carried_joints() -> Numbers:
    points = 8 * drawn(3, 2).double().numpy()
    frames = (np.roll(np.asarray(picture(64)), 4 * k, axis=1) for k in range(3))
    labels = joints.with_background(joints.draw_joints(points, (8, 8)))
    protocol = SquashedProtocol(image_size=8 * color_backbone().patch_size, context_frames=2, radius=3, top_k=4)
    carried = [joints.read_joints(soft) for soft in propagate(color_backbone(), protocol, frames, labels)]
    return [float(labels.sum()), *(float(cells.mean()) for cells in carried)]


def memory(tmp_path: Path, protocol: IncontextProtocol) -> Numbers:
    """A memory of a picture of two classes, and the classes that it gives to a part of the picture."""
    ids = np.zeros((80, 80), np.uint8)
    ids[:, 40:] = 1
    pair = LabeledPixels(tmp_path / "image.png", tmp_path / "mask.png")
    picture().save(pair.image)
    Image.fromarray(ids).save(pair.mask)
    splits = LabeledSplits([pair], [pair], ("a", "b"), DataFacts("striped", str(tmp_path), 1, "images", ""))
    backbone = load_backbone("random:vit_micro_patch8_64")
    read = Builder(backbone, splits, protocol, Session(tmp_path), 64, batch_size=1, workers=0).read([0], seed=1)
    patches = backbone.extract(drawn(1, 3, 64, 64)).patches
    answer = predict_squares(read, patches, protocol, 3, protocol.distance[0])
    return [float(read.features.abs().mean()), float(read.labels.float().sum()), float(answer.float().mean())]


def memories(tmp_path: Path) -> Numbers:
    plain = IncontextProtocol(augment=False, epochs=1)
    votes = replace(plain, readout="vote", distance=("l2",), standardize=True, memory_size=0)
    return [*memory(tmp_path, replace(plain, memory_size=20, temperature=0.1)), *memory(tmp_path, votes)]


def clusters() -> Numbers:
    points = torch.cat([drawn(30, 6), drawn(30, 6) + 2, drawn(30, 6) - torch.arange(6)])
    standardized = clustering.fit_scaling(points).apply(points)
    components = clustering.fit_components(standardized, 3).apply(standardized)
    fitted = clustering.cluster(components, 3, seed=0, starts=2, iterations=20)
    sizes = clustering.assign(components, fitted.centers).bincount(minlength=3)
    return [float(components.abs().mean()), fitted.objective, *sorted(sizes.tolist())]


def matching() -> Numbers:
    features = drawn(5, 8, 8) - 0.5, (drawn(5, 8, 8) - 0.5).roll(2, dims=2)
    points = np.array([[10.0, 20.0], [33.0, 41.0], [55.0, 5.0]])
    numbers = []
    for rule in ("probe3d", "dift", "geoaware"):
        matches = rules.match(rule, features, ((60, 64), (64, 48)), points, points - 3, 40.0, patch=8)
        assert matches.truth is not None
        numbers += [float(matches.points.mean()), float(np.abs(matches.predicted - matches.truth).mean())]
        numbers.append(float(rules.as_square(np.asarray(picture())[:50], 64, rule).mean()))
    soft = rules.match("geoaware", features, ((60, 64), (64, 48)), points, None, 40.0, patch=8, soft=True)
    return [*numbers, float(soft.points.mean())]


def followed() -> Numbers:
    features = torch.stack([(drawn(5, 8, 8) - 0.5).roll(k, dims=2) for k in range(3)])
    points = torch.tensor([[0.0, 20.0, 30.0], [1.0, 50.0, 9.0]])
    queries = tracks.query_features(features, points, (64, 64))
    positions, cosine = tracks.track_points(features, queries, (64, 64))
    back = tracks.cycle_distance(features, points, positions, (64, 64))
    return [float(positions.mean()), float(cosine.mean()), float(back.mean())]


def token_measures() -> Numbers:
    values = drawn(6, 4, 5, 5)
    norms = (1 + values).square()
    norms[0, 0, 0, 0] = 1e4
    return [
        tokens.rank_me(values.flatten(1)),
        tokens.lidar(values.flatten(2).movedim(1, 2).double()),
        float(tokens.high_norm_tokens(norms).sum()),
        tokens.position_share(values),
    ]


def attacks() -> Numbers:
    rng = np.random.default_rng(0)
    return [float(np.asarray(apply_attack(picture(), a, rng)).mean()) for a in ("crop50", "jpeg8", "blur2", "print")]


def neighbors() -> Numbers:
    votes = knn_votes(drawn(20, 4), torch.arange(20) % 3, drawn(6, 4) + 0.1, k=[5], temperature=0.07, classes=3)
    return [float(value) for _, order in votes for value in order[:, 0]]


def jf_scores() -> Numbers:
    truth = np.zeros((40, 40), np.uint8)
    truth[5:20, 5:20], truth[22:35, 10:30] = 1, 2
    found = jf.score_frame(np.roll(truth, 2, axis=0), truth, 2)
    return [float(value) for values in found for value in values]


def saliency_scores() -> Numbers:
    predicted, truth = drawn(20, 20).double().numpy(), drawn(20, 20).numpy() > 0.4
    curve = saliency.f_curve(predicted, truth)
    return [saliency.iou(predicted, truth), saliency.accuracy(predicted, truth), float(curve.mean())]


def segmentation_scores() -> Numbers:
    ids = (4 * drawn(20, 20)).numpy().astype(np.uint8)
    matrix = segmentation.confusion(np.roll(ids, 1), ids, 4)
    return [*segmentation.class_iou(matrix), segmentation.pixel_accuracy(matrix)]


def matched_classes() -> Numbers:
    matrices = (10 * drawn(3, 4, 4)).long().numpy()
    matrices[:, 3], matrices[:, :, 3] = 0, 0
    readings = [
        read_matrices(matrices, mapping_of(matrices, matching), absent)
        for matching in ("own", "hungarian", "precision")
        for absent in ("zero", "left out")
    ]
    return [*(reading.mean() for reading in readings), float(np.nanmean(readings[0].of_images()))]


def keypoint_scores() -> Numbers:
    distance = keypoints.distances(drawn(8, 2).numpy(), drawn(8, 2).numpy()[::-1])
    found = [keypoints.hits(distance, 1.0, alpha, strict=False) for alpha in (0.2, 0.5)]
    return [float(distance.mean()), *(float(near.sum()) for near in found)]


def track_scores() -> Numbers:
    points = 64 * drawn(6, 12, 2).double().numpy()
    occluded = drawn(6, 12).numpy() > 0.7
    numbers = []
    for mode in ("first", "strided"):
        queries = tracking.query_tracks(points, occluded, mode)
        frames = tracking.scored_frames(queries.points, 12, mode)
        hidden = np.roll(queries.occluded, 1, axis=1)
        scores = tracking.tracking_scores(queries.targets, queries.occluded, queries.targets + 2, hidden, frames)
        shown = ("occlusion_accuracy", "pts_within_4", "average_pts_within_thresh", "average_jaccard")
        numbers += [float(len(queries.points)), *(float(scores[name]) for name in shown)]
    return numbers


def pose_scores() -> Numbers:
    truth = 64 * drawn(4, 5, 2).double().numpy()
    cells = np.round(truth / 8)
    cells[2, 1] = -1
    scored = pose.pose_distances(cells, truth, (64, 64), (8, 8))
    return [float(value) for strict in (False, True) for value in pose.pck([scored], (0.1, 0.2), strict=strict)[:, -1]]


def depth_scores() -> Numbers:
    predicted, truth = (1 + drawn(2, 20, 20)).numpy()
    errors = depth.depth_errors(predicted, truth, depth.valid_pixels(truth, 0.1, 1.9, depth.eigen_mask((20, 20))))
    return list(errors.values())


PARTS: dict[str, Callable[[], Numbers]] = {
    "image features": image_features,
    "descriptors": lambda: [float(fit_whitening(drawn(20, 4), centered=False)(drawn(20, 4)).square().mean())],
    "attacks": attacks,
    "propagation": propagation,
    "joints": carried_joints,
    "objects": objects,
    "neighbors": neighbors,
    "clustering": clusters,
    "matching": matching,
    "tracks": followed,
    "token measures": token_measures,
    "class probe": class_probe,
    "fine-tuning": fine_tuning,
    "classification scores": lambda: hits(drawn(6, 3).argsort(1), torch.arange(6) % 3, list("abcdef"))[
        "top-1"
    ].tolist(),
    "jf scores": jf_scores,
    "saliency scores": saliency_scores,
    "box scores": lambda: boxes.box_iou((0, 0, 10, 10), [(5, 5, 15, 15), (0, 0, 5, 10)]).tolist(),
    "segmentation scores": segmentation_scores,
    "depth scores": depth_scores,
    "retrieval scores": lambda: [retrieval.average_precision(np.array([0, 3, 7]), 4)],
    "matched classes": matched_classes,
    "keypoint scores": keypoint_scores,
    "tracking scores": track_scores,
    "pose scores": pose_scores,
}
IN_A_FOLDER: dict[str, Callable[[Path], Numbers]] = {
    "pixel probe": pixel_probe,
    "depth probe": depth_probe,
    "memory": memories,
}

EXPECTED: dict[str, tuple[int, Numbers]] = {
    "jf scores": (1, [0.76471, 0.73333, 0.53333, 0.42424]),
    "image features": (2, [0.49281, 0.99996, 0.035605, 0.97841]),
    "descriptors": (1, [0.77266]),
    "attacks": (1, [127.91, 127.81, 126.31, 177.18]),
    "propagation": (1, [576.0, 188.0, 343.0]),
    "objects": (1, [9.0, 64.0, 9.0, 6.0, 50.0]),
    "neighbors": (1, [0.0, 0.0, 2.0, 0.0, 1.0, 0.0]),
    "class probe": (1, [1.0954, 1.0861, 0.59318, 116.0]),
    "pixel probe": (1, [0.69468, 0.55928, 0.3]),
    "depth probe": (1, [0.30434, 0.33268, 4.762]),
    "fine-tuning": (1, [0.34409, 0.23332]),
    "classification scores": (1, [0.0, 0.0, 0.0, 0.0, 0.0, 100.0]),
    "saliency scores": (1, [0.85659, 0.9075, 0.78497]),
    "box scores": (1, [0.14286, 0.5]),
    "segmentation scores": (1, [14.65, 18.667, 16.667, 12.621, 26.75]),
    "depth scores": (
        1,
        [0.54348, 0.88768, 1.0, 0.24249, 0.39771, 0.097055, 0.27543, 26.926, 0.1228, 0.32454],
    ),
    "retrieval scores": (1, [0.43676]),
    "joints": (1, [37.502, 3.429, 3.3605, 2.6822]),
    "memory": (1, [0.07043, 1280.0, 0.35107, 0.82299, 2048.0, 0.5]),
    "clustering": (1, [0.89415, 13.523, 30.0, 30.0, 30.0]),
    "matching": (1, [28.0, 0.32292, 174.17, 21.833, 13.167, 125.69, 21.333, 15.667, 78.553, 21.436]),
    "tracks": (1, [22.0, 0.89159, 16.075]),
    "token measures": (1, [4.6294, 2.6511, 1.0, 0.18842]),
    "matched classes": (1, [15.417, 20.556, 17.935, 23.913, 15.061, 20.081, 12.812]),
    "keypoint scores": (1, [0.55697, 2.0, 4.0]),
    "tracking scores": (1, [6.0, 0.57812, 1.0, 0.6, 0.32069, 13.0, 0.60839, 1.0, 0.6, 0.34154]),
    "pose scores": (1, [60.0, 93.333, 53.333, 86.667]),
    "VitReader": (1, [0.004518, 0.99994, 3.9634, 1.0, 3.937, 0.051107]),
    "EvaReader": (1, [0.002338, 0.97428, 0.154, 0.99998, 0.16345, 0.14984]),
    "StageReader": (2, [3.1087, 4.4221]),
}


def numbers_of(part: str, tmp_path: Path) -> Numbers:
    if part in IN_A_FOLDER:
        return IN_A_FOLDER[part](tmp_path)
    return PARTS[part]() if part in PARTS else reader(part)


@pytest.mark.parametrize("part", [*VERSIONS, *(kind.__name__ for kind in readers())])
def test_a_number_that_changes_has_another_version(part: str, tmp_path: Path):
    found = numbers_of(part, tmp_path)
    versions = {**VERSIONS, **{kind.__name__: kind.version for kind in readers()}}
    known = EXPECTED.get(part, (0, []))
    assert (versions[part], found) == (known[0], pytest.approx(known[1], rel=2e-3, abs=1e-6)), (
        f"raise the version of {part!r}, and write here: {part!r}: ({versions[part]}, "
        f"{[float(f'{number:.5g}') for number in found]}),"
    )

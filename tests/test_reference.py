"""The same numbers as the published reference implementations, through the project's public functions.

Every size, sequence name and parameter is read from the files, so the same tests run on another folder of them.
"""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers.pos_embed_sincos import RotaryEmbeddingDinoV3

from data.davis import load_davis
from data.masks import read_ids
from dino_dense import Backbone, load_backbone
from dino_dense.backbone.dino_vit import build_module
from dino_dense.backbone.dinov3 import periods_of
from dino_dense.objects.attention import attention_masks
from dino_dense.objects.cuts import tokencut
from dino_dense.objects.lost import lost
from dino_dense.objects.segment import box_of
from dino_dense.pretrain.head import DINOHead
from dino_dense.pretrain.objectives.dino import DINOLoss
from dino_dense.pretrain.optim import scaled_lr
from dino_dense.propagation.search import Neighborhood
from dino_dense.training.schedules import cosine_schedule
from tasks import RunOptions, get, run_one
from tasks.davis import DavisConfig
from tasks.knn import knn_votes
from tasks.scores.classification import hits
from tasks.scores.jf import score_sequence, summarize
from tasks.scores.retrieval import average_precision, positive_ranks, query_scores
from tasks.scores.saliency import accuracy, f_at_best_threshold, f_curve, iou
from tests.davis_files import all_masks
from tests.device import chosen
from tests.propagation.frames import carry_to_frame
from tests.reference_files import davis_root, pretrain_weights, recipe_weights, reference

IMAGENET_MEAN = (0.485, 0.456, 0.406)
VIDEO_STD = (0.228, 0.224, 0.225)  # the video script's own constant, used for these arrays too


def recipe_checkpoint(folder: Path, name: str) -> Path:
    """A checkpoint file with the reference's deterministic weights, as published files look."""
    path = folder / f"{name}.pth"
    if not path.exists():
        weights = build_module(name).state_dict()
        torch.save(recipe_weights({key: value.shape for key, value in weights.items()}), path)
    return path


# --- vit_features ---


def first_frame(size: tuple[int, int], input_mean: float) -> torch.Tensor:
    """Frame 0, resized to (H, W), of the sequence whose normalized pixels have this mean: [1, 3, H, W] in [0, 1]."""
    height, width = size
    for path in sorted(davis_root().glob("JPEGImages/480p/*/00000.jpg")):
        frame = cv2.cvtColor(cv2.resize(cv2.imread(str(path)), (width, height)), cv2.COLOR_BGR2RGB) / 255
        if abs(((frame - IMAGENET_MEAN) / VIDEO_STD).mean() - input_mean) < 1e-5:
            return torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    pytest.fail("no sequence of DINO_DENSE_DAVIS begins with the frame that vit_features was made from")


def test_vit_features(tmp_path: Path, device: torch.device):
    arrays = reference("vit_features")
    cases = sorted({key.split(".")[0] for key in arrays.files})
    assert cases
    for case in cases:
        _, size, patch, sides = case.split("_")
        height, width = map(int, sides.split("x"))
        path = recipe_checkpoint(tmp_path, f"vit_{size}_patch{patch}_224")
        backbone = load_backbone(str(path)).to(device).with_normalization(IMAGENET_MEAN, VIDEO_STD)
        image = first_frame((height, width), float(arrays[f"{case}.input_mean"]))
        check_features(backbone, image, arrays, case)


def check_features(backbone: Backbone, image: torch.Tensor, arrays: np.lib.npyio.NpzFile, case: str) -> None:
    found = backbone.extract(image, {"patches", "cls", "attention"})
    tokens = torch.cat([found.cls[:, :, None], found.patches.flatten(2)], dim=2)[0].T.cpu().numpy()
    step = int(arrays[f"{case}.step"])
    np.testing.assert_allclose(tokens[::step], arrays[f"{case}.tokens"], rtol=0, atol=2e-4, err_msg=case)
    np.testing.assert_allclose(found.cls[0].cpu(), arrays[f"{case}.forward_cls"], rtol=0, atol=2e-4, err_msg=case)
    attention = found.attention.flatten(2)[0].cpu()
    expected = arrays[f"{case}.cls_attention"]
    np.testing.assert_allclose(attention, expected[:, 1:], rtol=0, atol=1e-5, err_msg=case)
    np.testing.assert_allclose(1 - attention.sum(1), expected[:, 0], rtol=0, atol=1e-5, err_msg=case)
    if f"{case}.linear_probe_4blocks" in arrays.files:
        joined = backbone.extract(image, {"cls"}, layers=(-4, -3, -2, -1)).cls[0].cpu()
        np.testing.assert_allclose(joined, arrays[f"{case}.linear_probe_4blocks"], rtol=0, atol=2e-4, err_msg=case)


# --- dino_head, dino_loss, schedules ---

# Hidden and bottleneck sizes are not in the file; they are part of the case's definition.
HIDDEN, BOTTLENECK = 64, 32
EPOCHS = 100  # of the schedules


def test_dino_head(device: torch.device):
    arrays = reference("dino_head")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    head = DINOHead(x.shape[1], y.shape[1], HIDDEN, BOTTLENECK)
    weights = recipe_weights({name: value.shape for name, value in head.state_dict().items()})
    weights["last_layer.weight_g"] = torch.ones_like(weights["last_layer.weight_g"])
    head.load_state_dict(weights)
    torch.testing.assert_close(head.to(device)(x.to(device)).cpu(), y, rtol=0, atol=1e-5)


def test_dino_loss(device: torch.device):
    arrays = reference("dino_loss")
    steps = sorted({int(key.split(".")[0]) for key in arrays.files})
    # The file does not say the number of views; the teacher has 2 of the same images.
    n_views = 2 * len(arrays["0.student"]) // len(arrays["0.teacher"])
    loss = DINOLoss(arrays["0.student"].shape[1], n_views, 0.04, 0.07, 30).to(device)
    for step in steps:
        student, teacher = (torch.from_numpy(arrays[f"{step}.{name}"]).to(device) for name in ("student", "teacher"))
        student.requires_grad_()
        epoch = int(arrays[f"{step}.epoch"])
        assert loss.teacher_temp(epoch) == pytest.approx(float(arrays[f"{step}.teacher_temp"]), rel=1e-12)
        output = loss(student, teacher, epoch)
        output.loss.backward()
        loss.update_center(output.teacher_mean)
        assert output.loss.item() == pytest.approx(float(arrays[f"{step}.loss"]), rel=1e-5)
        assert_relative(student.grad, arrays[f"{step}.grad"])
        assert_relative(loss.center, arrays[f"{step}.center_after"])


def assert_relative(ours: torch.Tensor | None, theirs: np.ndarray) -> None:
    """Largest error at most 1e-5 of the largest value."""
    assert ours is not None
    assert ours.shape == theirs.shape
    assert np.abs(ours.cpu().numpy() - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize(
    ("name", "base", "final", "warmup"),
    [
        ("lr", scaled_lr(0.0005, 512), 1e-6, 10),
        ("wd", 0.04, 0.4, 0),
        ("momentum", 0.996, 1.0, 0),
    ],
)
def test_schedules(name: str, base: float, final: float, warmup: int):
    published = reference("schedules")[name]
    ours = cosine_schedule(base, final, EPOCHS, len(published) // EPOCHS, warmup)
    np.testing.assert_allclose(ours, published, rtol=0, atol=1e-12)


# --- label_propagation, davis_masks ---


def test_label_propagation(device: torch.device):
    arrays = reference("label_propagation")
    cases = sorted({key.split(".")[0] for key in arrays.files})
    assert cases
    for case in cases:
        target, sources, labels = (
            torch.from_numpy(arrays[f"{case}.{key}"]).to(device) for key in ("target", "sources", "labels")
        )
        assert labels.shape[2:] == tuple(arrays[f"{case}.hw"])
        radius, top_k = int(arrays[f"{case}.radius"]), int(arrays[f"{case}.topk"])
        ours = carry_to_frame(target, sources, labels, Neighborhood(radius, "square", top_k, True, temperature=0.1))
        np.testing.assert_allclose(ours.cpu().numpy(), arrays[f"{case}.out"][0], rtol=0, atol=1e-5, err_msg=case)


def stored_masks(arrays: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    """Binary masks [frames, H, W]."""
    frames, height, width = (int(size) for size in arrays[f"{name}.shape"])
    masks = np.unpackbits(arrays[f"{name}.masks"], axis=-1)[..., :width]
    assert masks.shape == (frames, height, width)
    return masks


def sequences_of(arrays: np.lib.npyio.NpzFile) -> list[str]:
    names = sorted({key.rsplit(".", 1)[0] for key in arrays.files})
    assert names
    return names


def test_davis_scores_of_the_stored_masks():
    arrays = reference("davis_masks")
    for name in sequences_of(arrays):
        masks = stored_masks(arrays, name)
        (sequence,) = load_davis(davis_root(), year=2016, sequences=[name], max_frames=len(masks))
        table = score_sequence(masks, all_masks(sequence), sequence.num_objects, sequence=name)
        for metric in ("J", "F"):
            np.testing.assert_allclose(table[metric], arrays[f"{name}.{metric}"], rtol=0, atol=1e-9, err_msg=name)
        overall, per_sequence = summarize(table)
        np.testing.assert_allclose(overall.to_numpy()[0], arrays[f"{name}.stats"], rtol=0, atol=1e-6, err_msg=name)
        assert per_sequence["Sequence"].tolist() == [f"{name}_1"]


@pytest.mark.slow
def test_davis_masks(tmp_path: Path, device: torch.device):
    """The whole task, from a checkpoint file to PNGs on disk."""
    arrays = reference("davis_masks")
    checkpoint = recipe_checkpoint(tmp_path, "vit_small_patch16_224")
    for name in sequences_of(arrays):
        expected = stored_masks(arrays, name)
        config = DavisConfig(data=str(davis_root()), year=2016, sequences=(name,), max_frames=len(expected))
        run_one(get("davis"), RunOptions(ckpt=str(checkpoint), out=str(tmp_path / name), device=str(device)), config)
        written = sorted((tmp_path / name / "masks" / name).glob("*.png"))
        found = np.stack([read_ids(path) for path in written])
        assert found.shape == expected.shape
        assert (found == expected).mean(axis=(1, 2)).min() >= 0.995, name


# --- knn ---


def test_knn(device: torch.device):
    arrays = reference("knn")
    train, train_labels, test, test_labels = (
        torch.from_numpy(arrays[key]).to(device) for key in ("train", "train_labels", "test", "test_labels")
    )
    counts = arrays["k"].tolist()
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    ranked = knn_votes(train, train_labels, test, k=counts, temperature=0.07, classes=classes)
    names = [str(index) for index in range(len(test))]
    ours = [hits(order.cpu(), test_labels.cpu(), names, places=k)[["top-1", "top-5"]].mean() for k, order in ranked]
    np.testing.assert_allclose(ours, arrays["top1_top5"], rtol=0, atol=1e-6)


# --- object_discovery, saliency_metrics ---


def cases_of(arrays: np.lib.npyio.NpzFile) -> list[str]:
    cases = sorted({key.split(".")[0] for key in arrays.files})
    assert cases
    return cases


def keys_of(arrays: np.lib.npyio.NpzFile, case: str) -> tuple[torch.Tensor, int, tuple[int, int]]:
    """Keys [D, h, w] without the class token's, the patch size, and the image's (H, W), pixels."""
    width, height = (int(side) for side in arrays[f"{case}.size_wh"])
    grid = arrays[f"{case}.tokencut_mask"].shape
    keys = torch.from_numpy(arrays[f"{case}.keys"][1:]).T
    return keys.unflatten(1, grid), height // grid[0], (height, width)


def test_object_discovery_tokencut(device: torch.device):
    arrays = reference("object_discovery")
    for case in cases_of(arrays):
        keys, patch, size = keys_of(arrays, case)
        found = tokencut(keys.to(device), tau=0.2, eps=1e-5)
        np.testing.assert_array_equal(found.mask, arrays[f"{case}.tokencut_mask"] > 0, err_msg=case)
        assert found.seed == int(arrays[f"{case}.tokencut_seed"])
        assert box_of(found.mask, patch, size) == tuple(arrays[f"{case}.tokencut_box"])
        ours, theirs = np.abs(found.eigenvector), arrays[f"{case}.tokencut_eig_abs"]
        np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), rtol=0, atol=1e-3, err_msg=case)


def test_object_discovery_lost(device: torch.device):
    arrays = reference("object_discovery")
    for case in cases_of(arrays):
        keys, patch, size = keys_of(arrays, case)
        found = lost(keys.to(device), k=100)
        assert found.seed == int(arrays[f"{case}.lost_seed"])
        assert box_of(found.mask, patch, size) == tuple(arrays[f"{case}.lost_box"])


def test_object_discovery_from_frames(tmp_path: Path, device: torch.device):
    """Keys and attention of our backbone: the same keys, and the same masks of 60 % of the attention."""
    arrays = reference("object_discovery")
    backbone = load_backbone(str(recipe_checkpoint(tmp_path, "vit_small_patch16_224"))).to(device)
    backbone = backbone.with_normalization(IMAGENET_MEAN, VIDEO_STD)
    for case in cases_of(arrays):
        keys, _, (height, width) = keys_of(arrays, case)
        path = davis_root() / "JPEGImages/480p" / str(arrays[f"{case}.seq"]) / f"{int(arrays[f'{case}.frame']):05d}.jpg"
        frame = cv2.cvtColor(cv2.resize(cv2.imread(str(path)), (width, height)), cv2.COLOR_BGR2RGB)
        found = backbone.extract(torch.from_numpy(frame).permute(2, 0, 1)[None].float() / 255, {"keys", "attention"})
        np.testing.assert_allclose(found.keys[0].cpu(), keys, rtol=0, atol=2e-4, err_msg=case)
        masks = attention_masks(found.attention[0], mass=0.6)
        np.testing.assert_array_equal(masks, arrays[f"{case}.attention60_masks"] > 0, err_msg=case)


def test_saliency_metrics():
    arrays = reference("saliency_metrics")
    pairs = list(zip(arrays["pred"], arrays["gt"] > 0, strict=True))
    assert np.mean([iou(*pair) for pair in pairs]) == pytest.approx(float(arrays["iou"]), abs=1e-6)
    assert np.mean([accuracy(*pair) for pair in pairs]) == pytest.approx(float(arrays["acc"]), abs=1e-6)
    best_f, _ = f_at_best_threshold([f_curve(*pair) for pair in pairs])
    assert best_f.mean() == pytest.approx(float(arrays["max_f"]), abs=1e-6)


# --- retrieval ---

DIFFICULTIES = {"medium": (("easy", "hard"), ("junk",)), "hard": (("hard",), ("junk", "easy"))}


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_retrieval(difficulty: str):
    arrays = reference("retrieval")
    rows = []
    for query, order in enumerate(arrays["ranks"].T):
        positive, junk = (
            np.concatenate([arrays[f"{query}.{label}"] for label in labels]) for labels in DIFFICULTIES[difficulty]
        )
        rows.append(query_scores(positive_ranks(order, positive, junk, len(order)), len(positive)))
    means = {name: np.nanmean([row[name] for row in rows]) / 100 for name in rows[0]}
    assert means["mAP"] == pytest.approx(float(arrays[f"map_{difficulty}"]), abs=1e-9)
    precisions = [means[f"mP@{k}"] for k in (1, 5, 10)]
    np.testing.assert_allclose(precisions, arrays[f"mpr_{difficulty}"], rtol=0, atol=1e-9)


def test_copy_detection_average_precision():
    arrays = reference("retrieval")
    cases = sorted(key.split(".")[0] for key in arrays.files if key.startswith("ap") and key.endswith(".ranks"))
    assert cases
    for case in cases:
        ranks = arrays[f"{case}.ranks"]
        assert average_precision(ranks, len(ranks)) == pytest.approx(float(arrays[f"{case}.ap"]), abs=1e-9)


# --- dinov3_features, hf_features, rope: files in their authors' names ---

TOKENS, ATTENTION = 2e-4, 1e-5


def stated_frame(arrays: np.lib.npyio.NpzFile, case: str) -> torch.Tensor:
    """The arrays' frame at the case's size, [1, 3, H, W] in [0, 1]."""
    files = sorted((davis_root() / "JPEGImages" / "480p" / str(arrays["seq"])).glob("*.jpg"))
    if not files:
        pytest.skip(f"no sequence {arrays['seq']} in {davis_root()}")
    height, width = map(int, arrays[f"{case}.hw"])
    rgb = cv2.cvtColor(cv2.imread(str(files[int(arrays["frame"])])), cv2.COLOR_BGR2RGB)
    image = cv2.resize(rgb, (width, height)) / 255
    if f"{case}.input_mean" in arrays.files:
        mean = ((image - arrays["norm_mean"]) / arrays["norm_std"]).mean((0, 1))
        np.testing.assert_allclose(np.ravel(arrays[f"{case}.input_mean"]).mean(), mean.mean(), atol=1e-5)
    return torch.from_numpy(image).permute(2, 0, 1)[None].float()


def load_stated(path: Path, arrays: np.lib.npyio.NpzFile) -> Backbone:
    mean, std = (tuple(map(float, arrays[key])) for key in ("norm_mean", "norm_std"))
    return load_backbone(str(path)).to(chosen()).with_normalization(mean, std)  # type: ignore[arg-type]


def close(found: object, expected: np.ndarray, tolerance: float, case: str) -> None:
    values = found.cpu() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(np.asarray(values), expected, rtol=0, atol=tolerance, err_msg=case)


def rows(features: torch.Tensor, layers: int = 1) -> torch.Tensor:
    """[1, L*C, h, w] -> [L, h*w, C]."""
    return features[0].flatten(1).unflatten(0, (layers, -1)).transpose(1, 2)


# --- dinov3_features ---


def models(arrays: np.lib.npyio.NpzFile) -> list[str]:
    return sorted(key.removesuffix(".shapes") for key in arrays.files if key.endswith(".shapes"))


def dinov3_file(folder: Path, arrays: np.lib.npyio.NpzFile, model: str, periods: str) -> Path:
    """A file in DINOv3's names, with the case's own periods and masks of the key bias."""
    weights = pretrain_weights(json.loads(str(arrays[f"{model}.shapes"])), str(arrays["recipe_salt"]))
    weights["rope_embed.periods"] = torch.from_numpy(arrays[f"{periods}.rope_periods"])
    for name in [name for name in weights if name.endswith("attn.qkv.bias")]:
        weights[f"{name}_mask"] = torch.from_numpy(arrays[f"{model}.bias_mask"])
    path = folder / f"{periods}.pth"
    torch.save(weights, path)
    return path


@pytest.mark.gpu
def test_dinov3_features(tmp_path: Path):
    arrays = reference("dinov3_features")
    for model in models(arrays):
        backbone = load_stated(dinov3_file(tmp_path, arrays, model, model), arrays)
        assert backbone.num_heads == int(arrays[f"{model}.num_heads"])
        for case in (f"{model}.a", f"{model}.b"):
            check_dinov3(backbone, arrays, case, prefix=1 + int(arrays[f"{model}.num_storage"]))
        other = load_stated(dinov3_file(tmp_path, arrays, model, f"{model}.bf16periods"), arrays)
        check_last_layer(other, arrays, f"{model}.bf16periods", prefix=1 + int(arrays[f"{model}.num_storage"]))


def check_last_layer(backbone: Backbone, arrays: np.lib.npyio.NpzFile, case: str, prefix: int) -> None:
    features = backbone.extract(stated_frame(arrays, case), {"cls", "patches", "attention"})
    close(features.cls[0], arrays[f"{case}.cls"], TOKENS, case)
    close(rows(features.patches)[0, :: int(arrays[f"{case}.step"])], arrays[f"{case}.patches"], TOKENS, case)
    close(features.attention[0].flatten(1), arrays[f"{case}.cls_attention"][:, prefix:], ATTENTION, case)


def check_dinov3(backbone: Backbone, arrays: np.lib.npyio.NpzFile, case: str, prefix: int) -> None:
    check_last_layer(backbone, arrays, case, prefix)
    image = stated_frame(arrays, case)
    layers = len(arrays[f"{case}.inter_cls"])
    joined = backbone.extract(image, {"cls", "patches"}, layers=range(-layers, 0))
    close(joined.cls[0].view(layers, -1), arrays[f"{case}.inter_cls"].reshape(layers, -1), TOKENS, case)
    every = int(arrays[f"{case}.inter_step"])
    close(rows(joined.patches, layers)[:, ::every], arrays[f"{case}.inter_patches"], TOKENS, case)
    keys = rows(backbone.extract(image, {"keys"}).keys, backbone.num_heads)  # [heads, h*w, c], before RoPE
    seen = np.arange(0, prefix + keys.shape[1], int(arrays[f"{case}.key_step"]))
    of_patches = seen >= prefix
    close(keys[:, seen[of_patches] - prefix], arrays[f"{case}.keys"][:, of_patches], TOKENS, case)


# --- hf_features ---


def hugging_face_folder(folder: Path, arrays: np.lib.npyio.NpzFile, model: str) -> Path:
    weights = pretrain_weights(json.loads(str(arrays[f"{model}.shapes"])), str(arrays["recipe_salt"]))
    (folder / model).mkdir()
    save_file(weights, folder / model / "model.safetensors")
    (folder / model / "config.json").write_text(str(arrays[f"{model}.config"]))
    return folder / model


@pytest.mark.gpu
def test_hf_features(tmp_path: Path):
    """The official position rule: `.official_tokens` where transformers' own differ by more than 1e-3."""
    arrays = reference("hf_features")
    for model in models(arrays):
        folder = hugging_face_folder(tmp_path, arrays, model)
        backbone = load_stated(folder, arrays)
        names = json.loads(str(arrays[f"{model}.names_in_transformers5"]))
        weights = pretrain_weights(json.loads(str(arrays[f"{model}.shapes"])), str(arrays["recipe_salt"]))
        torch.save({names[name]: value for name, value in weights.items()}, tmp_path / f"{model}.bin")
        newer = load_stated(tmp_path / f"{model}.bin", arrays)
        for case in (f"{model}.a", f"{model}.b"):
            check_tokens(backbone, arrays, case)
        image = stated_frame(arrays, f"{model}.a")
        for kind in ("cls", "patches"):
            assert torch.equal(backbone.extract(image, {kind})[kind], newer.extract(image, {kind})[kind])


def check_tokens(backbone: Backbone, arrays: np.lib.npyio.NpzFile, case: str) -> None:
    features = backbone.extract(stated_frame(arrays, case), {"cls", "patches"})
    official = f"{case}.official_tokens"
    expected = arrays[official if official in arrays.files else f"{case}.tokens"]
    # Where transformers' own tokens stand for the official ones, their difference is stated (ViT's norm epsilon).
    stated = 0.0 if official in arrays.files else float(arrays[f"{case}.official_max_diff"])
    tolerance = max(TOKENS, TOKENS + stated)
    close(features.cls[0], expected[0], tolerance, case)
    patches = rows(features.patches)[0]
    prefix = 1 + registers_of(backbone)
    seen = np.arange(0, prefix + len(patches), int(arrays[f"{case}.step"]))
    of_patches = seen >= prefix
    close(patches[seen[of_patches] - prefix], expected[of_patches], tolerance, case)


def registers_of(backbone: Backbone) -> int:
    tokens = backbone.module.reg_token
    return 0 if tokens is None else tokens.shape[1]


# --- rope ---


@pytest.mark.parametrize("normalize", ["separate", "max", "min"])
def test_rope(normalize: str):
    """The rotary embedding that our DINOv3 body is built with."""
    arrays = reference("rope")
    head_dim = int(arrays["embed_dim"]) // int(arrays["num_heads"])
    base = float(arrays["base"])
    close(periods_of(head_dim, base), arrays["periods"], 5e-6, "periods")
    rope = RotaryEmbeddingDinoV3(head_dim, temperature=base, normalize_coords=normalize, rotate_half=True)
    for case in ("a", "b"):
        sin, cos = rope.get_embed(tuple(map(int, arrays[f"{normalize}.{case}.hw"]))).chunk(2, dim=-1)
        close(sin, arrays[f"{normalize}.{case}.sin"], 5e-6, case)
        close(cos, arrays[f"{normalize}.{case}.cos"], 5e-6, case)

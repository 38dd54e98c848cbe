"""The whole DAVIS task, frames to J&F: the steps of the published scripts against ours.

The plain form reads and resizes a frame, extracts features with explicit softmax attention, builds the dense affinity,
upsamples, takes the argmax and writes a PNG. When all masks are written, it reads and scores them with the official
scorer's steps.
"""

import tempfile
from collections import deque
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.bench import Row, device, publish, seconds_of
from benchmarks.propagation import CONTEXT, dense, window_mask
from benchmarks.scoring import plain_f, plain_ids, plain_j, tree
from data.davis import VideoSequence, load_davis, read_prediction
from dino_dense import Backbone, load_backbone
from dino_dense.propagation.frames import frame_size
from tasks import Session, measured
from tasks.davis import TASK, DavisConfig, open_videos
from tasks.track import TRACK, TrackConfig, open_own_clip

FRAMES = {16: 12, 8: 4}  # by patch size: the benchmark takes minutes; few frames have a full context
MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.228, 0.224, 0.225))  # dino/eval_video_segmentation.py
SHORT_SIDE = 480
SAME_TIME = 1.05  # a clip of one's own takes as long as DAVIS, up to noise
SAME_PIXELS = 0.995  # of each frame, in fp32
SAME_SCORE = 0.2  # points of J&F, in bf16
TARGETS = {(16, "fp32"): 2.3, (16, "bf16"): 3.0, (8, "fp32"): 4.0}


# --- The published steps ------------------------------------------------------------------------------------


def plain(backbone: Backbone, sequence: VideoSequence, folder: Path) -> float:
    """Write masks of all frames except the first, then score all except the first and last: J&F, percent."""
    patch = backbone.patch_size
    size = frame_size(*sequence.size, short_side=SHORT_SIDE, rounding="floor64", patch_size=patch)
    grid = size[0] // patch, size[1] // patch
    mask = window_mask(grid)
    first = Image.fromarray(sequence.first_mask()).resize(grid[::-1], Image.Resampling.NEAREST)
    labels = F.one_hot(torch.from_numpy(np.array(first)).long(), sequence.num_objects + 1).permute(2, 0, 1).float()
    labels = labels.to(backbone.device)
    anchor = plain_features(backbone, sequence.frames[0], size), labels
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=CONTEXT - 1)
    (folder / sequence.name).mkdir(parents=True)
    for frame in sequence.frames[1:]:
        target = plain_features(backbone, frame, size)
        features, soft = zip(anchor, *recent, strict=True)
        out = dense(target, torch.stack([source.T for source in features]), torch.stack(soft), mask)
        recent.append((target, out))
        Image.fromarray(to_ids(out, patch, sequence.size)).save(folder / sequence.name / f"{frame.stem}.png")
    return plain_score(sequence, folder)


def plain_features(backbone: Backbone, path: Path, size: tuple[int, int]) -> Tensor:
    """Frame -> [h*w, D]."""
    pixels = cv2.resize(cv2.imread(str(path))[..., ::-1], size[::-1]).astype(np.float32) / 255
    image = torch.from_numpy((pixels - MEAN) / STD).permute(2, 0, 1)[None].to(backbone.device)
    for block in backbone.module.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        tokens = backbone.module.forward_features(image)
    for block in backbone.module.blocks:
        block.attn.fused_attn = True
    return tokens[0, 1:]


def to_ids(scores: Tensor, patch: int, size: tuple[int, int]) -> np.ndarray:
    upsampled = F.interpolate(scores[None], scale_factor=patch, mode="bilinear", align_corners=False)[0]
    for channel in upsampled:
        if channel.max() > 0:
            channel -= channel.min()
            channel /= channel.max()
    ids = upsampled.max(0).indices.cpu().numpy().astype(np.uint8)
    return np.array(Image.fromarray(ids).resize(size[::-1], Image.Resampling.NEAREST))


def plain_score(sequence: VideoSequence, folder: Path) -> float:
    values = []
    for index in range(1, len(sequence) - 1):
        path = sequence.masks[index]
        assert path is not None
        pred, gt = (plain_ids(file, sequence.year) for file in (folder / sequence.name / path.name, path))
        for identity in range(1, sequence.num_objects + 1):
            masks = pred == identity, gt == identity
            values += [plain_j(*masks), plain_f(*masks)]
    return 100 * float(np.mean(values))


# --- Both, on the same frames -------------------------------------------------------------------------------


def measure(patch: int) -> list[Row]:
    """Run each form once (a run is long enough), after one frame of warm-up."""
    (root, year), frames = tree(), FRAMES[patch]
    sequence = load_davis(root, year)[0]
    config = DavisConfig(data=str(root), year=year, sequences=(sequence.name,), max_frames=frames)
    sequence = load_davis(root, year, sequences=config.sequences, max_frames=frames)[0]
    backbone = load_backbone(f"random:vit_small_patch{patch}_224").to(device())
    backbone.extract(torch.rand(1, 3, 64, 64))
    rows: list[Row] = []
    scores: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain_s = seconds_of(lambda: scores.update(plain=plain(backbone, sequence, folder / "plain")))
        for dtype in ("fp32", "bf16"):
            backbone.to(device(), {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
            ours_s = seconds_of(lambda: scores.update({dtype: ours(backbone, config, folder / dtype)}))  # noqa: B023
            equal = _equal_pixels(sequence, folder / "plain", folder / dtype / "masks")
            if dtype == "fp32" and equal < SAME_PIXELS:
                raise AssertionError(f"davis: {100 * equal:.2f} % of a frame's pixels are equal in fp32")
            difference = scores[dtype] - scores["plain"]
            check = f"pixels equal >= {100 * equal:.2f} %, J&F {difference:+.2f}"
            agrees = abs(difference) <= SAME_SCORE
            target = TARGETS.get((patch, dtype))
            work = f"{frames} frames to J&F, ViT-S/{patch}, {dtype} (plain fp32), {device().type}"
            rows.append(Row("davis", work, plain_s, ours_s, "s", target=target, check=check, agrees=agrees))
            if dtype == "fp32":
                rows.append(clip_row(backbone, sequence, ours_s, f"{frames} frames, ViT-S/{patch}", folder))
    return rows


def clip_row(backbone: Backbone, sequence: VideoSequence, davis_s: float, what: str, folder: Path) -> Row:
    """The same frames as a person's own clip (`tasks.track`: masks and an overlay video) beside `tasks.davis`."""
    clip, first = folder / "clip", sequence.masks[0]
    assert first is not None
    clip.mkdir()
    for path in sequence.frames:
        (clip / path.name).symlink_to(path.resolve())
    config = TrackConfig(video=str(clip), mask=str(first))
    session = Session(folder / "track", device=device())
    clip_s = seconds_of(lambda: measured(TRACK, backbone, open_own_clip(config), config, session))
    written = len(list((folder / "track" / "masks" / "clip").glob("*.png")))
    agrees = written == len(sequence)
    return Row(
        "davis", f"{what}: tasks.davis, then tasks.track", davis_s, clip_s, "s", limit=SAME_TIME * davis_s,
        check=f"masks written {written}", agrees=agrees,
    )  # fmt: skip


def ours(backbone: Backbone, config: DavisConfig, out: Path) -> float:
    session = Session(out, device=backbone.device)
    outcome = measured(TASK, backbone, open_videos(config), config, session)
    return outcome.scores[0].value


def _equal_pixels(sequence: VideoSequence, one: Path, other: Path) -> float:
    """Smallest share of equal pixels over the frames."""
    return min(
        float(np.mean(read_prediction(one, sequence, index) == read_prediction(other, sequence, index)))
        for index in range(1, len(sequence) - 1)
    )


def main() -> list[Row]:
    rows = [row for patch in FRAMES for row in measure(patch)]
    publish(rows)
    return rows


if __name__ == "__main__":
    main()

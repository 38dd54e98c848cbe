"""Image-level features of a frozen backbone, extracted once and cached on disk.

A *piece* is one vector per image: "cls1" is the class token of the last block, "cls2" of the block before, and so on,
each after the final norm; "mean" is the mean of the last block's patch tokens, "gem" their generalized mean.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from data.images import open_picture, read_rgb
from data.notices import say
from data.sample import cache_folder
from dino_dense import Backbone, distributed
from dino_dense.backbone.bytes import sent, times_reciprocal
from dino_dense.checkpoint import CheckpointError, read_tensors, write_tensors
from dino_dense.files import WriteError, clear_unfinished
from dino_dense.loaders import WorkerItems, read_items
from dino_dense.report import current_commit
from dino_dense.versions import VERSIONS
from tasks.harness.session import Session
from tasks.images.decoding import decoded_squares
from tasks.images.options import Decoder, ImageFeatureOptions

CLS = "cls1"
SCALING = times_reciprocal  # of pixels of classification; other tasks divide
GEM_POWER = 4.0  # eval_copy_detection.py
GEM_FLOOR = 1e-6  # eval_copy_detection.py
DAY = 86_400.0  # seconds; no write takes this long

Pieces = dict[str, Tensor]


def cls_pieces(blocks: int) -> tuple[str, ...]:
    """Class tokens of the last `blocks` blocks, in the order of the network."""
    return tuple(f"cls{index}" for index in range(blocks, 0, -1))


@dataclass(frozen=True)
class Preprocessing:
    """Resize the short side, then crop the center square, as for ImageNet evaluation (pixels)."""

    resize: int = 256
    crop: int = 224
    squash: bool = False
    """Resize both sides to `resize` instead, changing the aspect ratio (Copydays); no crop."""
    fast_decode: bool = False
    """Decode JPEGs at 1/2, 1/4 or 1/8 size if this is no smaller than `resize`."""
    decode: Decoder = "pillow"
    """device: decode, resize and crop JPEGs on the backbone's device (`decoding`)."""

    def read(self, path: Path) -> Image.Image:
        """The picture as RGB, reduced with `fast_decode`; raises the errors of `read_rgb`."""
        if not self.fast_decode:
            return read_rgb(path)
        picture = open_picture(path)
        allowed = [part for part in picture.reductions if min(picture.size) >= part * self.resize]
        return Image.fromarray(picture.decode(max(allowed, default=1)))

    def geometry(self) -> v2.Compose:
        """PIL image, or uint8 [3, H, W] -> the same of crop x crop pixels."""
        size = [self.resize, self.resize] if self.squash else self.resize
        resize = v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True)
        return v2.Compose([resize] if self.squash else [resize, v2.CenterCrop(self.crop)])

    def transform(self) -> v2.Compose:
        """PIL image -> RGB uint8 [3, crop, crop], to be scaled by `SCALING`."""
        return v2.Compose([self.geometry(), v2.PILToTensor()])


class _Images(Dataset):
    def __init__(self, paths: Sequence[Path], preprocessing: Preprocessing) -> None:
        self.paths, self.read, self.transform = paths, preprocessing.read, preprocessing.transform()

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.read(self.paths[index]))


def square_batches(
    paths: Sequence[Path], preprocessing: Preprocessing, device: torch.device, *, batch_size: int, workers: int | None
) -> Iterator[Tensor]:
    """RGB uint8 [B, 3, crop, crop] of image files, in order: on the CPU, or where they are decoded.

    Raises:
        DataError: an image cannot be read; the message names it.
        ValueError: the device has no decoder.
    """
    worker_items = WorkerItems(workers, lambda index: str(paths[index]))
    if preprocessing.decode == "device":
        yield from decoded_squares(
            paths, preprocessing.geometry(), preprocessing.transform(), device, worker_items, batch_size
        )
        return
    items = _Images(paths, preprocessing)
    yield from read_items(items, worker_items, batch_size=batch_size, pin_memory=device.type != "cpu")


def extract_pieces(backbone: Backbone, images: Tensor, pieces: Collection[str]) -> Pieces:
    """Pieces [B, C] of images [B, 3, H, W], uint8 or in [0, 1], float32 on the backbone's device, in one pass.

    Not waited for: look at `finite_rows` and, when all are computed, `check_finite`.

    Raises:
        ValueError: an unknown piece, or more blocks than the backbone has.
    """
    pooled = {"mean", "gem"} & set(pieces)
    blocks = sorted({_block(piece) for piece in pieces if piece not in pooled} | ({1} if pooled else set()))
    if blocks != [1] and not backbone.uniform_width:
        raise ValueError(f"{backbone.name} has no blocks of one width: ask for its last layer only.")
    if blocks != [1] and backbone.layers != (-1,):
        raise ValueError(
            f"layers is {backbone.layers}, and the task joins several blocks itself: leave out one of both."
        )
    want = ({"patches"} if pooled else set()) | ({"cls"} if len(pooled) < len(set(pieces)) else set())
    images = sent(images, backbone.device, SCALING)
    features = backbone.extract(images, want, layers=None if blocks == [1] else [-block for block in blocks])
    result: Pieces = {}
    if "patches" in want:
        last = features.patches[:, : backbone.embed_dim]  # blocks are in the order 1, 2, ...
        result = {"mean": last.mean((-2, -1)), "gem": generalized_mean(last)}
    if "cls" in want:
        parts = features.cls.chunk(len(blocks), dim=1)
        result |= {f"cls{block}": part for block, part in zip(blocks, parts, strict=True)}
    return {piece: result[piece] for piece in pieces}


def finite_rows(pieces: Pieces) -> Tensor:
    """Whether every feature of an image is finite, bool [B], on the device of the pieces [B, C]."""
    return torch.stack([features.isfinite().all(dim=1) for features in pieces.values()]).all(dim=0)


def check_finite(backbone: Backbone, finite: Tensor, name: Callable[[int], object]) -> None:
    """Wait for the device, and refuse features that are no numbers.

    Args:
        finite: of `finite_rows` [N].
        name: index of an image -> its name in the message.

    Raises:
        ValueError: names the first such image.
    """
    if bool(finite.all()):
        return
    broken = (~finite).nonzero()[:, 0].tolist()
    raise ValueError(
        f"{backbone.name} gave features that are not finite numbers for {len(broken)} of {len(finite)} images, first "
        f"for {name(broken[0])}: check its weights, or use fp32."
    )


def generalized_mean(patches: Tensor, power: float = GEM_POWER, floor: float = GEM_FLOOR) -> Tensor:
    """GeM pooling [B, C, h, w] -> [B, C]: the power mean of values of at least `floor` (Radenovic et al. 2018)."""
    return patches.clamp(min=floor).pow(power).mean((-2, -1)).pow(1 / power)


def image_features(
    backbone: Backbone,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    *,
    session: Session,
    pieces: Collection[str] = (CLS,),
    batch_size: int = 64,
    workers: int | None = None,
    label: str = "features",
) -> Pieces:
    """Pieces [N, C] of images, float32 on the CPU, in the order of `paths`.

    They are read from the cache if it has this checkpoint, these files (path, size, modification time), this
    preprocessing and this program version. Otherwise all processes together extract them, and they are cached. The
    pieces of `session.pieces` are then extracted too, for a later call.

    Raises:
        DataError: an image cannot be read; the message names it.
        ValueError: the backbone does not have a piece.
    """
    files = {piece: _cache_file(backbone, paths, preprocessing, piece) for piece in {*pieces, *session.pieces}}
    maker = _maker(backbone)
    features_by_piece = {
        piece: held for piece in set(pieces) if (held := _read(files[piece], maker, session)) is not None
    }
    if distributed.any_true(len(features_by_piece) < len(set(pieces))):
        lacking = [piece for piece in files if piece in pieces or not files[piece].is_file()]
        missing = sorted(set(distributed.gather_objects(lacking)))  # equal in every process, even if caches differ
        extracted = _extract(backbone, paths, preprocessing, missing, session, batch_size, workers, label)
        for piece, features in extracted.items():
            metadata = {"checkpoint": backbone.sha256, "name": backbone.name, "piece": piece, "made_by": maker}
            metadata |= {"commit": commit} if (commit := current_commit()) else {}
            session.once(_keep, files[piece], {piece: features}, metadata)
        features_by_piece |= extracted
    return {piece: features_by_piece[piece] for piece in pieces}


def square_features(
    backbone: Backbone,
    paths: Sequence[Path],
    options: ImageFeatureOptions,
    session: Session,
    *,
    pieces: Collection[str] = (CLS,),
    batch_size: int,
    label: str = "features",
) -> Pieces:
    """`image_features` of center crops, with a task's options."""
    return image_features(
        backbone,
        paths,
        Preprocessing(options.resize, options.crop, fast_decode=options.fast_decode, decode=options.decode),
        session=session,
        pieces=pieces,
        batch_size=batch_size,
        workers=options.workers,
        label=label,
    )


def _block(piece: str) -> int:
    """The block of a class token, counted from the end."""
    number = piece.removeprefix("cls")
    if number == piece or not number.isdecimal() or number == "0":
        raise ValueError(f"unknown piece {piece!r}; there are cls1 (the last block), cls2, ..., mean and gem.")
    return int(number)


def _maker(backbone: Backbone) -> str:
    """Names the code that makes features of this backbone; it changes when a number of theirs does."""
    return f"image features {VERSIONS['image features']}, {backbone.reader_version}"


def _read(file: Path, maker: str, session: Session) -> Tensor | None:
    """Features from the cache; None where there are none, or damaged ones, or those of another version (it is said)."""
    try:
        tensors, metadata = read_tensors(file)
        features = next(iter(tensors.values()))
    except (CheckpointError, FileNotFoundError, StopIteration):
        return None
    if metadata.get("made_by") != maker:
        say(f"Features that an earlier version kept ({metadata.get('made_by', 'unknown')}) are made anew by {maker}.")
        return None
    session.commits.update([metadata["commit"]] if metadata.get("commit") else [])
    return features


def _keep(file: Path, features: Pieces, metadata: Mapping[str, str]) -> None:
    """Write to the cache; only warns on failure, since the features can be extracted again."""
    clear_unfinished(file.parent, older_than=DAY)
    try:
        write_tensors(file, features, metadata)
    except WriteError as error:
        print(
            f"WARNING: {file.parent}: features cannot be kept ({error.__cause__}), and will be extracted again. Free "
            "or unlock the disk, or name another folder in the variable DINO_DENSE_CACHE.",
            file=sys.stderr,
        )


def _extract(
    backbone: Backbone,
    paths: Sequence[Path],
    preprocessing: Preprocessing,
    pieces: Sequence[str],
    session: Session,
    batch_size: int,
    workers: int | None,
    label: str,
) -> Pieces:
    own_paths = distributed.even_share(paths, session.world)
    loader = square_batches(own_paths, preprocessing, backbone.device, batch_size=batch_size, workers=workers)
    extracted: Pieces = {}
    finite = torch.ones(len(own_paths), dtype=torch.bool, device=backbone.device)
    done = 0
    with session.bar(len(own_paths), label) as bar:
        for images in loader:
            batch = extract_pieces(backbone, images, pieces)
            rows = slice(done, done + len(images))
            for piece, features in batch.items():
                if piece not in extracted:  # allocated once: joining a list at the end would need twice the memory
                    extracted[piece] = features.new_empty(len(own_paths), features.shape[1])
                extracted[piece][rows] = features
            finite[rows] = finite_rows(batch)
            if not done:  # broken weights show at once, a single overflow at the end
                check_finite(backbone, finite[rows], lambda index: own_paths[index])
            done += len(images)
            bar.update(len(images))
    check_finite(backbone, finite, lambda index: own_paths[index])
    return {piece: distributed.all_gather(extracted[piece])[: len(paths)].cpu() for piece in pieces}


def _cache_file(backbone: Backbone, paths: Sequence[Path], preprocessing: Preprocessing, piece: str) -> Path:
    """The cache file of these features: named by a hash of all that determines them, except the program version."""
    digest = hashlib.sha256()
    key = {
        "layers": [*backbone.layers, backbone.norm],
        "weights": backbone.weights_sha256,
        "architecture": backbone.name,
        "pixels": [backbone.mean, backbone.std],
        "dtype": str(backbone.dtype),
        "device": backbone.device.type,
        # Without the default decoder: features of before there was another are kept.
        "preprocessing": {name: value for name, value in asdict(preprocessing).items() if value != "pillow"},
    }
    digest.update(json.dumps(key, sort_keys=True).encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return cache_folder() / "features" / f"{digest.hexdigest()[:32]}-{piece}.safetensors"

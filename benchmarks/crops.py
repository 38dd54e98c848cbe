"""Ten DINO crops of a JPEG: main_dino's PIL pipeline against ours (draw first, decode at reduced size, batch colors).

Measures images per second of one core from files to crops, by CPU time of one thread. The pictures are from the folder
or tar file in DINO_DENSE_IMAGENET_FULL (JPEGs of ImageNet's size), else from the embedded data set.
"""

import os
import random
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms
from torchvision.transforms import functional as tv

from benchmarks.bench import Row, publish
from data.images import DecodedPicture, JpegPicture, open_picture
from data.sample import sample_data
from dino_dense.arrays import Pixels
from dino_dense.backbone.dino_vit import IMAGENET_MEAN, IMAGENET_STD
from dino_dense.pretrain.batches import CropDataset, MicroBatch
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.crops import CropBox, MultiCrop, View, allowed_reduction, prepare, reduced_box, resize
from dino_dense.pretrain.photometric import Photometric, apply_photometric, apply_photometric_batch
from dino_dense.training.plan import Position

ROOT = Path(__file__).resolve().parents[1]
N_IMAGES = 100
MICRO_BATCH = 10
PHOTO = (4000, 3000)  # width, height of a camera's picture (12 megapixels)
N_PHOTOS = 4
IN_LOADER, ON_DEVICE = (PretrainConfig(augment_on=where) for where in ("loader", "device"))


# --- The plain implementation: PIL and torchvision, step by step as main_dino.py ---


class GaussianBlur:
    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.p:
            return image
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*IN_LOADER.blur_radius)))


class Solarization:
    def __init__(self, p: float) -> None:
        self.p = p

    def __call__(self, image: Image.Image) -> Image.Image:
        return ImageOps.solarize(image) if random.random() < self.p else image


class PlainCrops:
    def __init__(self) -> None:
        config = IN_LOADER
        blur_1, blur_2, blur_local = config.blur_probs
        of_global = (config.global_crop_size, config.global_crops_scale)
        self.views = [
            self._view(*of_global, GaussianBlur(blur_1)),
            self._view(*of_global, GaussianBlur(blur_2), Solarization(config.solarize_prob)),
        ]
        local = self._view(config.local_crop_size, config.local_crops_scale, GaussianBlur(blur_local))
        self.views += [local] * config.local_crops_number

    def _view(self, size: int, scale: tuple[float, float], *last: Callable) -> transforms.Compose:
        bicubic = transforms.InterpolationMode.BICUBIC
        return transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=scale, interpolation=bicubic),
                transforms.RandomHorizontalFlip(p=0.5),
                transforms.RandomApply([transforms.ColorJitter(*IN_LOADER.jitter)], p=IN_LOADER.jitter_prob),
                transforms.RandomGrayscale(p=IN_LOADER.gray_prob),
                *last,
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __call__(self, path: Path) -> list[torch.Tensor]:
        with Image.open(path) as file:
            image = file.convert("RGB")
        return [view(image) for view in self.views]


def plain_view(pixels: Pixels, view: View, size: int) -> Pixels:
    """A view with fixed parameters, by Pillow."""
    top, left, height, width = view.box
    image = Image.fromarray(pixels).crop((left, top, left + width, top + height))
    image = image.resize((size, size), Image.Resampling.BICUBIC)
    image = ImageOps.mirror(image) if view.flip else image
    adjust = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for operation in view.photometric.order:
        if view.photometric.factors[operation] != Photometric().factors[operation]:
            image = adjust[operation](image, view.photometric.factors[operation])
    image = tv.rgb_to_grayscale(image, 3) if view.photometric.gray else image
    image = image.filter(ImageFilter.GaussianBlur(view.photometric.blur)) if view.photometric.blur else image
    return np.asarray(ImageOps.solarize(image) if view.photometric.solarize else image)


# --- Ours ---


class Files:
    """Pictures for pretraining; `reductions` may forbid decoding at reduced size."""

    fingerprint = ""

    def __init__(self, paths: Sequence[Path], reductions: tuple[int, ...] = (1, 2, 4, 8)) -> None:
        self.paths, self.reductions = paths, reductions

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """The file's name, for messages."""
        return self.paths[index].name

    def __getitem__(self, index: int) -> JpegPicture | DecodedPicture:
        picture = open_picture(self.paths[index])
        picture.reductions = tuple(r for r in picture.reductions if r in self.reductions)
        return picture


def our_batches(files: Files, config: PretrainConfig) -> list[MicroBatch]:
    """The batches that a loader's worker makes from the files."""
    dataset, batches = CropDataset(files, config), []
    for first in range(0, len(files), MICRO_BATCH):
        indices = range(first, min(first + MICRO_BATCH, len(files)))
        batch = dataset[[Position(0, index, index, index - first) for index in indices]]
        if isinstance(batch, Exception):
            raise batch
        batches.append(batch)
    return batches


def prepared(batch: MicroBatch) -> None:
    """The training process's work on a micro-batch."""
    prepare(batch.global_views, batch.global_photometric)
    prepare(batch.local_views, batch.local_photometric)


def our_views(pixels: Pixels, views: Sequence[View], config: PretrainConfig) -> list[Pixels]:
    """Views with fixed parameters, with photometric changes applied as `config` says; rounded to 8 bits."""
    crop = MultiCrop(config)
    into = [np.empty((kind.size, kind.size, 3), np.uint8) for kind in crop.kinds]
    crop.render(DecodedPicture(pixels), views, into)
    if crop.applies_photometric:
        return into
    planes = [torch.from_numpy(view).permute(2, 0, 1)[None] for view in into]
    parameters = [torch.tensor([view.photometric.row()]) for view in views]
    changed = [
        apply_photometric_batch(view, photometric)[0] for view, photometric in zip(planes, parameters, strict=True)
    ]
    return [view.permute(1, 2, 0).round().byte().numpy() for view in changed]


# --- How far apart ---


def differences(files: Files, config: PretrainConfig, n: int = 10) -> str:
    """Mean and largest absolute difference to Pillow, levels of 255, over all ten views of n pictures.

    Raises ValueError if a mean is above a level: the augmentations differ then.
    """
    crop, parts = MultiCrop(config), []
    for name, of in SINGLE.items():
        gaps = []
        for index in range(min(n, len(files))):
            picture = files[index]
            views = [view._replace(photometric=of(view.photometric)) for view in crop.draw(picture.size, seed=index)]
            pixels = picture.decode()
            plain = [plain_view(pixels, view, kind.size) for view, kind in zip(views, crop.kinds, strict=True)]
            ours = our_views(pixels, views, config)
            gaps += [np.abs(a.astype(int) - b).ravel() for a, b in zip(ours, plain, strict=True)]
        gap = np.concatenate(gaps)
        if gap.mean() > 1:
            raise ValueError(f"{name}: {gap.mean():.2f} levels from Pillow on average")
        parts.append(f"{name} {gap.mean():.2f}/{gap.max()}")
    return "mean/max difference to Pillow, of 255: " + ", ".join(parts)


SINGLE: dict[str, Callable[[Photometric], Photometric]] = {
    "resize": lambda drawn: Photometric(),
    "brightness": lambda drawn: Photometric(brightness=drawn.brightness),
    "contrast": lambda drawn: Photometric(contrast=drawn.contrast),
    "saturation": lambda drawn: Photometric(saturation=drawn.saturation),
    "hue": lambda drawn: Photometric(hue=drawn.hue),
    "gray": lambda drawn: Photometric(gray=True),
    "blur": lambda drawn: Photometric(blur=drawn.blur or 1.0),
    "solarize": lambda drawn: Photometric(solarize=True),
    "all": lambda drawn: drawn,
}
"""The applied part of drawn parameters, by case."""


def reduced_difference(files: Files) -> str:
    """Difference between views of pictures decoded at reduced size and at full size.

    Both use the same boxes, rounded to the reduced size.
    """
    crop, gaps, used = MultiCrop(ON_DEVICE), [], set()
    for index in range(len(files)):
        whole, views = files[index].decode(), crop.draw(files[index].size, seed=index)
        r = allowed_reduction(files.reductions, [view.box for view in views], [kind.size for kind in crop.kinds])
        small = files[index].decode(r)
        boxes = [CropBox(*(side * r for side in reduced_box(view.box, r, small))) for view in views]
        bare = [View(box, view.flip, Photometric()) for view, box in zip(views, boxes, strict=True)]
        used.add(r)
        from_small = [np.empty((kind.size, kind.size, 3), np.uint8) for kind in crop.kinds]
        crop.render(files[index], bare, from_small)
        sides = from_small, our_views(whole, bare, ON_DEVICE)
        gaps += [np.abs(a.astype(int) - b).ravel() for a, b in zip(*sides, strict=True)]
    gap = np.concatenate(gaps)
    return f"decoded at 1/{' 1/'.join(map(str, sorted(used)))}; mean/max difference {gap.mean():.2f}/{gap.max()}"


# --- Pictures ---


@contextmanager
def pictures() -> Iterator[tuple[list[Path], str]]:
    """JPEG files, and their description."""
    folder_or_tar = os.environ.get("DINO_DENSE_IMAGENET_FULL")
    source = Path(folder_or_tar) if folder_or_tar else ROOT.parent / "shared" / "datasets" / "imagenet_full_100.tar"
    with tempfile.TemporaryDirectory() as folder:
        if source.is_file():
            with tarfile.open(source) as tar:
                tar.extractall(folder, filter="data")
            files, what = _jpegs(Path(folder)), "ImageNet JPEGs"
        elif source.is_dir():
            files, what = _jpegs(source), "ImageNet JPEGs"
        elif folder_or_tar:
            raise FileNotFoundError(
                f"DINO_DENSE_IMAGENET_FULL is {folder_or_tar}: expected a folder or a tar file of JPEGs"
            )
        else:
            files, what = _jpegs(sample_data().images / "val"), "JPEGs of the embedded set"
        if not files:
            raise FileNotFoundError(f"{source}: no JPEGs in it")
        yield files[:N_IMAGES], what


def _jpegs(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))


def write_photos(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Write the largest pictures at the size of a camera's."""
    by_size = sorted(paths, key=lambda path: -path.stat().st_size)[:N_PHOTOS]
    photos = []
    for path in by_size:
        with Image.open(path) as image:
            image.convert("RGB").resize(PHOTO, Image.Resampling.BICUBIC).save(folder / path.name, quality=92)
        photos.append(folder / path.name)
    return photos


def draw_comparison(path: Path | str, sources: Sequence[Path], size: int = 160) -> None:
    """Write a JPEG with pairs of rows: Pillow's views above ours with the same parameters."""
    config, rows = replace(IN_LOADER, global_crop_size=size, local_crop_size=size, local_crops_number=4), []
    for seed, source in enumerate(sources):
        pixels = open_picture(source).decode()
        views = MultiCrop(config).draw(pixels.shape[:2], seed)
        rows.append(np.hstack([plain_view(pixels, view, size) for view in views]))
        rows.append(np.hstack(our_views(pixels, views, config)))
        rows.append(np.full((8, rows[-1].shape[1], 3), 255, np.uint8))
    Image.fromarray(np.vstack(rows[:-1])).save(path, quality=85)


# --- The figures ---


def rates(n: int, *calls: Callable[[], object], repeats: int = 5) -> list[float]:
    """Images per second of CPU time for each call on n images; medians of calls in turn."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(repeats + 1):
        for call, kept in zip(calls, seconds, strict=True):
            start = time.process_time()
            call()
            if repeat:  # the first is the warm-up
                kept.append(time.process_time() - start)
    return [n / statistics.median(kept) for kept in seconds]


def small_rows(paths: Sequence[Path], what: str) -> list[Row]:
    files, plain = Files(paths), PlainCrops()

    def everything() -> None:
        for batch in our_batches(files, IN_LOADER):
            prepared(batch)

    slow, loader, both = rates(
        len(paths), lambda: [plain(path) for path in paths], lambda: our_batches(files, ON_DEVICE), everything
    )
    work = f"{len(paths)} {what}, 2x224 + 8x96"
    unit = "images/s a core"
    return [
        Row(
            "crops",
            f"{work}: loader, colors on the device",
            slow,
            loader,
            unit,
            target=8,
            check=differences(files, ON_DEVICE),
            better="higher",
        ),
        Row(
            "crops",
            f"{work}: everything on the CPU",
            slow,
            both,
            unit,
            target=4,
            check=differences(files, IN_LOADER),
            better="higher",
        ),
        _photometric_row(files),
    ]


def _photometric_row(files: Files) -> Row:
    """The cost of the batched operations without a GPU."""
    some = Files(files.paths[:20])
    batches, crop = our_batches(some, ON_DEVICE), MultiCrop(IN_LOADER)
    parameters = [view.photometric for index in range(len(some)) for view in crop.draw(some[index].size, index)]
    whole, box = some[0].decode(), CropBox(0, 0, *some[0].size)
    sizes = [kind.size for kind in crop.kinds] * len(some)
    views = [resize(whole, box, np.empty((size, size, 3), np.uint8)) for size in sizes]

    def in_loader() -> None:
        for view, photometric in zip(views, parameters, strict=True):
            apply_photometric(view, photometric)

    def batched() -> None:
        for batch in batches:
            apply_photometric_batch(batch.global_views, batch.global_photometric)
            apply_photometric_batch(batch.local_views, batch.local_photometric)

    one_by_one, at_once = rates(len(some), in_loader, batched, repeats=3)
    work = "colors of 2x224 + 8x96: view by view in the loader, beside the device's batches run on the CPU"
    return Row("crops", work, one_by_one, at_once, "images/s a core", better="higher", note="why auto takes the loader")


def large_rows(paths: Sequence[Path]) -> list[Row]:
    plain, reduced, whole = PlainCrops(), Files(paths), Files(paths, (1,))
    slow, undivided, ours = rates(
        len(paths),
        lambda: [plain(path) for path in paths],
        lambda: our_batches(whole, ON_DEVICE),
        lambda: our_batches(reduced, ON_DEVICE),
        repeats=2,
    )
    work, unit = f"{len(paths)} JPEGs of {PHOTO[0]}x{PHOTO[1]}", "images/s a core"
    check = reduced_difference(reduced)
    return [
        Row("crops", f"{work}: loader, colors on the device", slow, ours, unit, check=check, better="higher"),
        Row("crops", f"{work}: decoded whole, beside reduced", undivided, ours, unit, check=check, better="higher"),
    ]


def main() -> list[Row]:
    torch.manual_seed(0)
    random.seed(0)
    threads, cv_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        with pictures() as (paths, what), tempfile.TemporaryDirectory() as folder:
            rows = small_rows(paths, what) + large_rows(write_photos(paths, Path(folder)))
        publish(rows)
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv_threads)
    return rows


if __name__ == "__main__":
    main()

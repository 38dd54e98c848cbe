"""The checks of `python -m benchmarks.gpu`. Each is a function from the machine to rows of the table."""

import importlib.util
import math
import random
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench import synchronise
from benchmarks.crops import pictures
from benchmarks.gpu_machine import Check, Line, Machine, SkippedError, message, verdict
from benchmarks.scoring import tree
from benchmarks.training_step import FIRST_STEP, GFLOP_OF_AN_IMAGE, SAME_LOSS, TIMED, curves, make_batch, make_trainer
from data.sample import sample_data
from dino_dense import Backbone, Report, distributed, load_backbone
from dino_dense.neighbors.exact import nearest
from dino_dense.objects.cuts import tokencut, tokencuts
from dino_dense.objects.protocol import SegmentProtocol
from dino_dense.objects.segment import patch_features, to_tensor
from dino_dense.pretrain.batches import MicroBatch
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.photometric import draw_photometric
from dino_dense.pretrain.trainer import Trainer
from tasks import RunOptions, get, names, run_one
from tasks.images.decoding import check_decoder
from tasks.images.features import CLS, Preprocessing, extract_pieces, square_batches
from tasks.images.options import Decoder

VIT, SMALL = "random:vit_small_patch16_224", "random:vit_micro_patch8_64"
FORWARD_GFLOP = 9.2  # ViT-S/16 at 224 pixels, an image
PEAKS = {"H100": 989.0, "H200": 989.0, "A100": 312.0}  # TFLOP/s of bf16 without sparsity, from NVIDIA's data sheets
SAME = {"fp32": 1.0, "bf16": 5.0}
"""Allowed difference of the headline score of a random network on the small embedded data, points."""
TRIAL = PretrainConfig(
    arch="vit_micro_patch8_32",
    out_dim=64,
    head_hidden_dim=32,
    head_bottleneck_dim=16,
    global_crop_size=32,
    local_crop_size=16,
    local_crops_number=2,
    batch_size=4,
    norm_last_layer=False,
    drop_path_rate=0.0,
    warmup_teacher_temp=0.04,
)
TRIAL_WORDS = (
    *("--arch", "vit_micro_patch8_32", "--out-dim", "64", "--global-crop-size", "32", "--local-crop-size", "16"),
    *("--local-crops-number", "2", "--batch-size", "8", "--epochs", "20", "--warmup-epochs", "1", "--num-workers", "0"),
)
DTYPES = ("fp16", "bf16")


# --- Does it run, and give the CPU's numbers? ---------------------------------------------------------------


def known_numbers(where: Machine) -> Iterator[Line]:
    """The tests against known numbers compute on the device."""
    if importlib.util.find_spec("pytest") is None:
        raise SkippedError("needs pytest")
    words = ["pytest", "-q", "-p", "no:cacheprovider", "--device", str(where.device), "-m", "gpu", "tests"]
    said = where.run(*words, *where.size([], ["--collect-only"]))
    yield Line("pytest -m gpu: features, losses, masks and scores of reference files", "all pass", last(said), "yes")


def commands(where: Machine) -> Iterator[Line]:
    """Commands that once failed on CUDA alone end without an error."""
    ckpt, out, on = where.size(VIT, SMALL), str(where.folder), ("--device", str(where.device))
    propagated = ["tasks.davis", "--ckpt", ckpt, "--short-side", "192", "--max-frames", "5", "--out", f"{out}/d", *on]
    for words in (
        ["tasks.discovery", "--ckpt", ckpt, "--method", "lost", "--max-images", "4", "--out", f"{out}/l", *on],
        propagated,
        ["tasks.davis", "--score", f"{out}/d/masks", "--max-frames", "5", "--out", f"{out}/s", *on],
    ):
        where.run(*words)
        yield Line(" ".join(word for word in words if not word.startswith(out)), "no error", "no error", "yes")
    try:
        with distributed.memory_explained():
            torch.empty(1 << 50, dtype=torch.uint8, device=where.device)
    except distributed.OutOfMemoryError as error:
        yield Line("a PiB of memory is asked for", "a message with options to lower", message(error), "yes")


def every_task(where: Machine) -> Iterator[Line]:
    """Every task at its smallest size, on the device in fp32 and bf16 beside the CPU in fp32."""

    def measured(task: str, on: str, dtype: str) -> Report:
        out = str(where.folder / f"{task}-{on.replace(':', '')}-{dtype}")
        return run_one(get(task), RunOptions(ckpt=SMALL, device=on, dtype=dtype, out=out), get(task).smoke)  # type: ignore[arg-type]

    for task in where.size(names(), ["knn", "saliency"]):
        reference = measured(task, "cpu", "fp32")
        metric, value, seconds = reference.scores[0].metric, reference.scores[0].value, reference.seconds
        for dtype, allowed in SAME.items():
            text = f"{task}, {dtype}: {metric}, seconds (CPU fp32: {value:.2f}, {seconds:.1f} s)"
            try:
                report = measured(task, str(where.device), dtype)
            except Exception as error:
                yield Line(text, "no error", f"{type(error).__name__}: {message(error)}", "no")
                continue
            reached = report.scores[0].value
            found = f"{reached:.2f}, {report.seconds:.1f} s, peak {report.peak_memory_mib:.0f} MiB"
            yield Line(text, f"within {allowed:g}", found, verdict(abs(reached - value) <= allowed))


def tokencut_masks(where: Machine) -> Iterator[Line]:
    """TokenCut of the same features on the CPU and on the device, alone and eight images at once."""
    backbone = load_backbone(where.size(VIT, SMALL))
    size = where.size((480, 832), (64, 96))
    from data.davis import load_davis

    frames = [to_tensor(sequence.read_frame(0), size) for sequence in load_davis(*tree())[:8]]
    features = torch.cat([patch_features(backbone, frame[None], SegmentProtocol()) for frame in frames])
    seconds, masks = [], []
    for call in (
        lambda: [tokencut(image) for image in features],
        lambda: [tokencut(image) for image in features.to(where.device)],
        lambda: tokencuts(features.to(where.device)),
    ):
        call()
        taken, segments = timed(call)
        seconds.append(1000 * taken / len(frames))
        masks.append(torch.stack([torch.from_numpy(segment.mask) for segment in segments]))
    equal = min(float((other == masks[0]).float().mean()) for other in masks[1:])
    yield Line(
        f"TokenCut, {len(frames)} images, {features.shape[-2]}x{features.shape[-1]} patches: equal pixels",
        ">= 99 %",
        f"{equal:.2%}",
        verdict(equal >= 0.99),
    )
    yield Line("ms an image: CPU; device alone; device together", found="; ".join(f"{part:.1f}" for part in seconds))


# --- Training -----------------------------------------------------------------------------------------------


def loss_curve(where: Machine) -> Iterator[Line]:
    """The loss of optimizer steps beside the paper's algorithm in plain form."""
    for dtype in where.size(DTYPES, ("fp32",)):
        config = where.size(None, TRIAL)
        difference = curves(dtype) if config is None else curves(dtype, config, 3)
        text = f"DINO loss, {dtype}, largest difference to the plain loop in fp32"
        yield Line(text, f"<= {SAME_LOSS[dtype]:g}", f"{difference:.1e}", verdict(difference <= SAME_LOSS[dtype]))


def waits(where: Machine) -> Iterator[Line]:
    """An optimizer step of ViT-S/16: waits for the device, peak memory, images a second, share of the device's peak."""
    config = where.size(replace(TIMED, batch_size=64), TRIAL)
    for dtype in where.size(DTYPES, ("fp32",)):
        trainer, batch = make_trainer(config, dtype), with_colors(make_batch(config, 0), config)
        numbers = iter(range(FIRST_STEP, FIRST_STEP + 100))
        step = partial(one_step, trainer, batch, numbers)
        for _ in range(4):
            step()
        count = counted_waits(step, where)
        synchronise()
        if not where.is_trial:
            torch.cuda.reset_peak_memory_stats(where.device)
        repeats = where.size(20, 2)
        seconds, _ = timed(lambda step=step, repeats=repeats: [step() for _ in range(repeats)])  # type: ignore[misc]
        rate = config.batch_size * repeats / seconds
        text = f"{config.arch}, {config.batch_size} images, colors on the device, {dtype}"
        yield Line(f"{text}: waits of a step", "0", str(count), verdict(count == 0))
        yield Line(f"{text}: images/s, of the bf16 peak", found=f"{rate:.0f}, {share(rate * GFLOP_OF_AN_IMAGE)}")
        if not where.is_trial:
            peak = torch.cuda.max_memory_allocated(where.device) / 2**30
            yield Line(f"{text}: peak memory", "9.5 GiB (estimate)", f"{peak:.1f} GiB")


def real_training(where: Machine) -> Iterator[Line]:
    """Pretraining from JPEGs by the command: loss, images a second, gradient norm of the last row."""
    changes = (["--dtype", "fp16"], ["--dtype", "bf16"], ["--dtype", "bf16", "--pack"], ["--dtype", "bf16"])
    changes[-1].extend(["--augment-on", "loader"])
    steps = where.size(200, 4)
    with pictures() as (files, kind):
        folder = where.folder / "jpegs"
        folder.mkdir()
        for number, file in enumerate(files):
            shutil.copy(file, folder / f"{number}{file.suffix}")
        for number, words in enumerate(where.size(changes, (["--dtype", "fp32"],))):
            out = where.folder / f"training-{number}"
            full = ("--batch-size", "64", "--epochs", "400", "--warmup-epochs", "10")
            row = pretrained(where, out, full, "--data", str(folder), "--max-steps", str(steps), *words).iloc[-1]
            text = f"pretraining, {len(files)} {kind}, {steps} steps, {' '.join(words)}: loss, images/s, gradient norm"
            found = f"{row['loss']:.4f}, {row['images_per_s']:.0f}, {row['grad_norm']:.3f}"
            yield Line(text, "finite", found, verdict(bool(row[["loss", "grad_norm"]].notna().all())))


def compilations(where: Machine) -> Iterator[Line]:
    """Pretraining with --compile: how often a block is compiled again, and images a second."""
    needs_compiler(where)
    out = where.folder / "compiled"
    full = (
        "--batch-size",
        "64",
        "--epochs",
        "400",
        "--warmup-epochs",
        "10",
        "--dtype",
        "bf16",
        "--drop-path-rate",
        "0.1",
    )
    words = pretraining_words(where, out, full, "--max-steps", str(where.size(60, 2)), "--compile")
    said = where.run(*words, variables={"TORCH_LOGS": "recompiles"})
    again = sum("Recompiling function" in line for line in said.splitlines())
    yield Line("compilations after the first, 2 sizes and the teacher", "<= 2", str(again), verdict(again <= 2))
    rate = pd.read_csv(out / "log.csv")["images_per_s"].iloc[-1]
    yield Line("images/s compiled", "2000 (estimate)", f"{rate:.0f}")


def packed_attention(where: Machine) -> Iterator[Line]:
    """Flex, nested and variable-length attention in place of that of --pack: equal results, and which is fastest."""
    needs_compiler(where)
    from benchmarks import packing

    for row in packing.rows(*where.size((packing.IMAGES, packing.BLOCKS, 5), (1, 1, 1))):
        if math.isnan(row.ours):
            yield Line(row.work, found=row.check, as_expected="skipped")
            continue
        found = f"{row.check}; {row.ratio:.2f} times as fast"
        yield Line(row.work, f"<= {packing.SAME:g}", found, verdict(row.agrees))


def exactness(where: Machine) -> Iterator[Line]:
    """Equal runs and a resumed run, with --deterministic and without: largest difference of the loss."""
    full = ("--arch", "vit_tiny_patch16_224", "--out-dim", "4096", "--batch-size", "64", "--epochs", "5")
    full = (*full, "--warmup-epochs", "1")
    steps = where.size(30, 6)
    for words in ((), ("--deterministic",)):
        label = " ".join(words) or "default"
        common = ("--log-every", "1", "--save-every", str(steps // 2), *words)
        first, second, halves = (where.folder / f"{name}-{label}" for name in ("first", "second", "halves"))
        run = partial(pretrained, where)
        runs = [run(out, full, *common, "--max-steps", str(steps)) for out in (first, second)]
        run(halves, full, *common, "--max-steps", str(steps // 2))
        runs.append(run(halves, full, *common, "--max-steps", str(steps), "--resume"))
        again, resumed = (float((other["loss"] - runs[0]["loss"]).abs().max()) for other in runs[1:])
        right = verdict(again == resumed == 0) if words else ""
        expected = "0, 0" if words else "small (sums have no fixed order)"
        yield Line(f"{label}: same run again, resumed at half", expected, f"{again:.1e}, {resumed:.1e}", right)


def one_process(where: Machine) -> Iterator[Line]:
    """Every exchange between processes in a group of one under torchrun, by NCCL on CUDA."""
    words = ["torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "benchmarks.gpu_checks"]
    said = where.run(*words)
    yield Line("torchrun, 1 process: gather, reduce, flags, copies, DDP step", "unchanged", last(said), "yes")
    where.run(
        *("torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m", "tasks.knn", "--ckpt", SMALL),
        *("--resize", "64", "--crop", "64", "--out", str(where.folder / "knn"), "--device", str(where.device)),
    )
    yield Line("torchrun, 1 process: tasks.knn", "no error", "no error", "yes")


# --- Speed --------------------------------------------------------------------------------------------------


def feature_rate(where: Machine) -> Iterator[Line]:
    """Features of ViT-S/16 from bytes in memory: images a second and share of the device's peak."""
    count, side = where.size((256, 224), (4, 64))
    for dtype in (torch.float32, torch.bfloat16):
        backbone = load_backbone(where.size(VIT, SMALL)).to(where.device, dtype)
        images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
        images = images if where.is_trial else images.pin_memory()
        repeats = where.size(20, 2)
        extract = partial(extract_pieces, backbone, images, (CLS,))
        extract()
        seconds, _ = timed(lambda extract=extract, repeats=repeats: [extract() for _ in range(repeats)])  # type: ignore[misc]
        rate = count * repeats / seconds
        kind = str(dtype).removeprefix("torch.")
        yield Line(
            f"class tokens, {kind}: images/s, of the bf16 peak", found=f"{rate:.0f}, {share(rate * FORWARD_GFLOP)}"
        )


def jpeg_decoding(where: Machine) -> Iterator[Line]:
    """JPEGs decoded by Pillow in workers, and on the device: images/s to class tokens, pixels, k-NN by both."""
    try:
        check_decoder(where.device)
    except ValueError as error:
        raise SkippedError(message(error)) from None
    backbone = load_backbone(where.size(VIT, SMALL)).to(where.device, torch.bfloat16)
    ways: tuple[Decoder, ...] = ("pillow", "device")
    with pictures() as (files, kind):
        files = files[: where.size(100, 4)]
        work = f"{len(files)} {kind}"
        sides = where.size((256, 224), (64, 64))
        many, batch = files * where.size(40, 2), where.size(64, 4)
        rates = [rate_from_files(backbone, many, Preprocessing(*sides, decode=way), batch) for way in ways]
        found = " / ".join(f"{rate:.0f}" for rate in rates)
        yield Line(f"class tokens from {work}, bf16: images/s by Pillow, by the device", found=found)
        plain, ours = (
            torch.cat([part.cpu() for part in square_batches(files, squares, where.device, batch_size=64, workers=0)])
            for squares in (Preprocessing(*sides, decode=way) for way in ways)
        )
        apart = (plain.int() - ours.int()).abs()
        found = f"mean {apart.float().mean():.3f}, largest {apart.max()}"
        yield Line(f"pixels of {work}, difference of 255", found=found)
    scores, knn = [], get("knn")
    config = replace(knn.smoke, data=str(few_images(where.folder / "few"))) if where.is_trial else knn.smoke
    for way in ways:
        options = RunOptions(ckpt=SMALL, device=str(where.device), out=str(where.folder / f"knn-{way}"))
        scores.append(run_one(knn, options, replace(config, decode=way)).scores[0].value)
    found = " / ".join(f"{score:.2f}" for score in scores)
    same = abs(scores[0] - scores[1]) <= SAME["fp32"]
    yield Line("k-NN of the embedded set by Pillow, by the device", f"within {SAME['fp32']:g}", found, verdict(same))


def imagenet_neighbors(where: Machine) -> Iterator[Line]:
    """The 20 nearest of 1,281,167 random features (ImageNet's training set) for 50,000 queries."""
    queries, database = where.size((50_000, 1_281_167), (200, 5_000))
    generator = torch.Generator(where.device).manual_seed(0)

    def drawn(count: int) -> Tensor:
        return F.normalize(torch.randn(count, 384, generator=generator, device=where.device), dim=1)

    asked, known = drawn(queries), drawn(database)
    seconds, found = timed(lambda: nearest(asked, known, 20))
    expected = (asked[:25].cpu() @ known.cpu().T).topk(20, dim=1).indices
    same = float((found.indices[:25].cpu() == expected).float().mean())
    yield Line(
        f"k-NN, {queries:,} of {database:,}: seconds; neighbors of 25 queries equal to the CPU's",
        ">= 99 %",
        f"{seconds:.1f} s; {same:.1%}",
        verdict(same >= 0.99),
    )


def davis_frames(where: Machine) -> Iterator[Line]:
    """DAVIS: frames a second from files to J&F, and J&F of the first frames beside the CPU."""
    from tasks.davis import DavisConfig

    root, year = tree()
    config = DavisConfig(data=str(root), year=year)  # type: ignore[arg-type]
    config = where.size(config, replace(config, short_side=96, max_frames=4))
    first = sorted(path.name for path in (root / "JPEGImages" / "480p").iterdir() if path.is_dir())[:1]

    def measured(name: str, on: str, dtype: str, config: DavisConfig) -> Report:
        ckpt, out = where.size(VIT, SMALL), str(where.folder / f"davis-{name}")
        return run_one(get("davis"), RunOptions(ckpt=ckpt, device=on, dtype=dtype, out=out), config)  # type: ignore[arg-type]

    for dtype in ("fp32", "bf16"):
        report = measured(dtype, str(where.device), dtype, config)
        frames = len(list((where.folder / f"davis-{dtype}" / "masks").rglob("*.png")))
        found = f"{frames / report.seconds:.0f} frames/s ({frames} frames), J&F {report.scores[0].value:.2f}, peak "
        yield Line(f"tasks.davis, {root.name}, {dtype}", found=f"{found}{report.peak_memory_mib:.0f} MiB")
    part = replace(config, sequences=tuple(first), max_frames=where.size(20, 3), split=split_of(root, year, first[0]))
    here, there = (measured(f"part-{on}", on, "fp32", part).scores[0].value for on in ("cpu", str(where.device)))
    yield Line(f"{first[0]}, first frames: J&F", f"{here:.2f} (CPU)", f"{there:.2f}", verdict(abs(here - there) <= 0.2))


# --- Parts --------------------------------------------------------------------------------------------------


def split_of(root: Path, year: int, name: str) -> str:
    """A split with this sequence."""
    lists = sorted((root / "ImageSets" / str(year)).glob("*.txt"), reverse=True)
    return next(file.stem for file in lists if name in file.read_text().split())


def needs_compiler(where: Machine) -> None:
    """Raises SkippedError where `torch.compile` lacks something."""
    if where.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise SkippedError("needs Triton")
    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        raise SkippedError("needs a C compiler")


def last(text: str) -> str:
    """The last line."""
    return (text.strip().splitlines() or [""])[-1]


def rate_from_files(backbone: Backbone, files: Sequence[Path], squares: Preprocessing, batch: int) -> float:
    """Images/s from files to class tokens, from the second batch on: the first waits for the workers to start."""
    batches = square_batches(files, squares, backbone.device, batch_size=batch, workers=None)
    extract_pieces(backbone, next(batches), (CLS,))
    seconds, counts = timed(lambda: [len(extract_pieces(backbone, part, (CLS,))[CLS]) for part in batches])
    return float(sum(counts)) / seconds


def few_images(folder: Path) -> Path:
    """Copy four images of two classes of the embedded set, for a trial."""
    for split in ("train", "val"):
        for kind in sorted((sample_data().images / split).iterdir())[:2]:
            (folder / split / kind.name).mkdir(parents=True)
            for file in sorted(kind.iterdir())[:4]:
                shutil.copy(file, folder / split / kind.name)
    return folder


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call with its work on the device, and its result."""
    synchronise()
    start = time.perf_counter()
    result = call()
    synchronise()
    return time.perf_counter() - start, result


def share(gflops: float) -> str:
    """A rate of GFLOP/s as a share of the device's peak."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    peak = next((value for key, value in PEAKS.items() if key in name), None)
    return f"{gflops / 1000:.1f} TFLOP/s" + (f" ({gflops / 1000 / peak:.0%})" if peak else "")


def with_colors(batch: MicroBatch, config: PretrainConfig) -> MicroBatch:
    """The batch with photometric parameters to apply on the device."""
    rng = random.Random(0)

    def rows(count: int) -> Tensor:
        return torch.tensor([draw_photometric(config, 0.5, 0.2, rng).row() for _ in range(count)])

    return batch._replace(
        global_photometric=rows(len(batch.global_views)), local_photometric=rows(len(batch.local_views))
    )


def one_step(trainer: Trainer, batch: MicroBatch, numbers: Iterator[int]) -> None:
    """An optimizer step whose result nobody asks for."""
    trainer.stepper.run(next(numbers), [batch])


def counted_waits(step: Callable[[], None], where: Machine) -> int:
    """How often CUDA says that the host waited in a step."""
    if where.is_trial:
        step()
        return 0
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        step()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in seen)


def pretraining_words(where: Machine, out: Path, full: tuple[str, ...], *words: str) -> list[str]:
    """A command of pretraining: `full`, or a tiny network in a trial."""
    sized = where.size(full, TRIAL_WORDS)
    every = () if "--log-every" in words else ("--log-every", "1" if where.is_trial else "50", "--save-every", "999")
    return ["dino_dense.pretrain", *sized, *every, *words, "--device", str(where.device), "--out", str(out)]


def pretrained(where: Machine, out: Path, full: tuple[str, ...], *words: str) -> pd.DataFrame:
    """The log of a run of pretraining by its command."""
    where.run(*pretraining_words(where, out, full, *words))
    return pd.read_csv(out / "log.csv")


def exchange() -> str:
    """Every exchange of `distributed` in this process's group, compared with what a group of one must give."""
    import torch.distributed as dist

    cuda = torch.cuda.is_available()
    here = torch.device("cuda", 0) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(here)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    rows = torch.arange(6.0, device=here).view(3, 2)
    layer = torch.nn.Linear(2, 2).to(here)
    before = layer.weight.detach().clone()
    distributed.copy_from_main(layer)
    equal = [
        torch.equal(distributed.all_gather(rows), rows),
        torch.equal(distributed.all_gather_with_gradient(rows), rows),
        torch.equal(distributed.all_reduce_mean(rows.clone()), rows),
        torch.equal(distributed.all_reduce_sum(rows.clone()), rows),
        torch.equal(layer.weight, before),
        distributed.any_true(True) and not distributed.any_true(False),
        distributed.gather_objects(["a"]) == ["a"],
    ]
    wrapped = torch.nn.parallel.DistributedDataParallel(layer, gradient_as_bucket_view=True)
    wrapped(rows).sum().backward()
    expected = rows.sum(dim=0).expand(2, -1)
    equal.append(layer.weight.grad is not None and torch.allclose(layer.weight.grad, expected))
    distributed.barrier()
    dist.destroy_process_group()
    if not all(equal):
        raise SystemExit(f"differs: {equal}")
    return f"unchanged, {len(equal)} exchanges on {here.type}"


CHECKS = {
    "numbers": Check(known_numbers, 2.0),
    "commands": Check(commands, 1.0),
    "tasks": Check(every_task, 4.0),
    "tokencut": Check(tokencut_masks, 0.5),
    "loss": Check(loss_curve, 1.0),
    "waits": Check(waits, 0.7),
    "training": Check(real_training, 2.0),
    "compile": Check(compilations, 2.5),
    "packing": Check(packed_attention, 0.5),
    "exact": Check(exactness, 2.0),
    "nccl": Check(one_process, 0.7),
    "features": Check(feature_rate, 0.3),
    "decode": Check(jpeg_decoding, 0.7),
    "neighbors": Check(imagenet_neighbors, 0.3),
    "davis": Check(davis_frames, 1.5),
}
"""Name -> check, in the order of a run."""

if __name__ == "__main__":
    print(exchange())

"""Fine-tune the whole network with a linear layer on top to classify images (DeiT's recipe, as used by DINO)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dino_dense import Picture
from dino_dense.backbone.grid import check_whole
from dino_dense.config import command_line
from dino_dense.versions import versions
from tasks.finetuning.config import FinetuneConfig
from tasks.harness.command import main
from tasks.harness.figures import curves
from tasks.harness.session import Session
from tasks.harness.task import Outcome, Task
from tasks.images.labeled import LabeledSet, open_labeled
from tasks.scores.classification import METRICS, hits

if TYPE_CHECKING:
    import pandas as pd

    from dino_dense import Backbone
    from tasks.finetuning.loop import FineTuning


def measure(backbone: Backbone, images: LabeledSet, config: FinetuneConfig, session: Session) -> Outcome:
    """Train a copy of the backbone (resuming an earlier run in this folder), and test it.

    Writes `checkpoints/`: model.safetensors (the last weights, which the scores are for) and best.safetensors (the
    weights of the best evaluation), both usable as --ckpt; and last.safetensors (the state to resume from).

    Raises:
        ValueError: settings do not fit; DivergedError: training diverged.
        DataError: an unreadable image.
    """
    import pandas as pd
    import torch

    from tasks.finetuning.files import LOG_FILE
    from tasks.finetuning.loop import FineTuning
    from tasks.finetuning.measure import CONFUSION_CLASSES, confusion, per_class

    check_whole("crop", config.crop, backbone.patch_size, backbone.name)
    fine_tuning = FineTuning(backbone, config, images, session)
    predictions = fine_tuning.train()
    samples = hits(predictions.ranking, torch.tensor(images.test.labels), images.test_names)
    log = pd.DataFrame(fine_tuning.log)
    tables = {LOG_FILE.removesuffix(".csv"): log, "per_class": per_class(predictions, images.test)}
    if len(images.test.class_names) <= CONFUSION_CLASSES:
        tables["confusion"] = confusion(predictions, images.test)
    return Outcome(
        tables=tables,
        note=_note(log, fine_tuning),
        samples=samples,
        to_draw=(predictions, log),
    )


def _note(log: pd.DataFrame, fine_tuning: FineTuning) -> str:
    from tasks.finetuning.files import BEST_FILE, MODEL_FILE

    plan = fine_tuning.plan
    best, last = log.iloc[int(log["top-1"].argmax())], log.iloc[-1]
    note = (
        f"Of the last weights ({MODEL_FILE}), after {last['epoch']:g} epochs. The best evaluation, "
        f"{best['top-1']:.2f} % after {best['epoch']:g} epochs ({BEST_FILE}), is one chosen on the test images."
    )
    if plan.last_step < plan.total_steps:
        note += f" Stopped after {plan.last_step} of {plan.total_steps} steps."
    if plan.batch_size != fine_tuning.config.batch_size:
        note += f" The batch is {plan.batch_size}: there are {plan.n_images} training images."
    return note


def draw(images: LabeledSet, outcome: Outcome, folder: Path) -> tuple[Picture, ...]:
    """Draw the test images with the largest loss, the confusion matrix, and the curves."""
    from tasks.finetuning.figures import draw_confusion, draw_hardest

    predictions, log = outcome.to_draw
    folder = folder / "pictures"
    folder.mkdir(exist_ok=True)
    shown = draw_confusion(folder / "confusion.png", predictions, images.test)
    hardest = draw_hardest(folder / "hardest.png", predictions, images.test)
    curves(folder / "curves.png", log.set_index("epoch")[["train_loss", "test_loss", "top-1"]], "epoch")
    classes = len(images.test.class_names)
    which = "of all classes" if shown == classes else f"of the {shown} classes with most mistakes, of {classes}"
    return (
        Picture("pictures/hardest.png", f"The {len(hardest)} test images with the largest loss: class → guess."),
        Picture("pictures/confusion.png", f"Confusion matrix {which}."),
        Picture("pictures/curves.png", "Training loss (of mixed and smoothed labels), test loss and top-1 by epoch."),
    )


TASK = Task(
    name="finetune",
    summary="Classification after fine-tuning the whole network (top-1 of the last epoch).",
    source="DINO, arXiv 2104.14294, sec. 4.3 and Tab. 6; DeiT's recipe as dino issues 31, 81, 144 and 171 give it.",
    config=FinetuneConfig,
    metrics=METRICS,
    open=open_labeled,
    measure=measure,
    draw=draw,
    fixed_layers="fine-tuning trains the whole network and reads its last layer",
    smoke=FinetuneConfig(
        epochs=1,
        max_steps=12,
        batch_size=16,
        lr=1e-3,
        lr_scale_batch=None,
        warmup_epochs=0,
        layer_decay=1.0,
        head_lr_scale=50.0,
        smoothing=0.0,
        mixup=0.0,
        cutmix=0.0,
        drop_path=0.0,
        crop_scale=(1.0, 1.0),
        flip=0.0,
        randaugment=None,
        erasing=0.0,
        resize=64,
        crop=64,
    ),
    versions=versions("fine-tuning", "classification scores"),
)

if __name__ == "__main__":
    command_line.run(lambda: main("finetune"))

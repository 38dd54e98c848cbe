"""Settings that contradict each other or the data are refused, with the settings to choose."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from dino_dense.config import command_line
from dino_dense.pretrain.config import PretrainConfig
from dino_dense.pretrain.conflicts import TRIAL_STEPS, ConflictError, RunSize, check_conflicts
from dino_dense.pretrain.optim import build_schedules

IMAGENET = 1_281_167
RECIPES = Path(__file__).parents[2] / "configs" / "pretrain"
IMAGES = {"micro8": 1191, "quickstart": 2000, "quickstart_dense": 2000, "continue_dinov2_vits14": 20_000}
"""Recipe -> the number of images that it is for; ImageNet's if not here."""


def warnings(config: PretrainConfig, images: int = IMAGENET, processes: int = 1) -> list[str]:
    steps = images // config.batch_size
    total = steps * config.epochs
    left = float(build_schedules(config, steps).momentum.prod())
    return check_conflicts(config, RunSize(images, total, min(total, config.max_steps or total), processes, left))


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_have_no_conflict(recipe: Path):
    config = command_line.parse(PretrainConfig, prog="p", description="d", argv=["--config", str(recipe)])
    if recipe.stem.startswith("continue"):
        config = replace(config, start="weights.pth")
    assert not warnings(config, IMAGES.get(recipe.stem, IMAGENET), processes=8 if config.batch_size >= 512 else 1)


GRAM = {"objectives": ("dino", "gram")}
REFUSED = [
    ({"batch_size": 64}, IMAGENET, r"averages over 16,000 images.*--momentum-teacher 0\.9995"),
    ({"out_dim": 65536, "batch_size": 16}, 2000, r"65,536, for 2,000 images.*--out-dim 256"),
    ({"momentum_teacher": 1.0}, IMAGENET, "100% of the last teacher are its random first weights"),
    ({"teacher_temp": 0.1}, IMAGENET, r"--teacher-temp 0\.07"),
    ({**GRAM}, IMAGENET, r"random weights, which are no teacher. Set --start .*--gram-teacher run --gram-begin"),
    ({"objectives": ("dino", "paka"), "paka_teacher": "start"}, IMAGENET, "--paka-teacher teacher"),
    (
        {**GRAM, "gram_teacher": "run", "gram_begin": 250_300},
        IMAGENET,
        "the run has 250200 steps: the loss never begins",
    ),
    ({"objectives": ("dino", "ibot"), "ibot_mask_share": 0.0}, IMAGENET, "no crop is masked"),
    ({"trainable": "last:3"}, IMAGENET, "--start CHECKPOINT"),
    ({"start": "a.pth", "heads_first": 250_200, "lr": 1e-6}, IMAGENET, "the backbone never learns"),
]


@pytest.mark.parametrize(("changes", "images", "message"), REFUSED)
def test_a_run_that_cannot_work_is_refused_and_an_expert_may_go_on(changes: dict, images: int, message: str):
    config = PretrainConfig(**changes)
    with pytest.raises(ConflictError, match=message):
        warnings(config, images)
    assert any("WARNING" in line for line in warnings(replace(config, allow_conflicts=True), images))
    assert not warnings(replace(config, max_steps=TRIAL_STEPS), images)


@pytest.mark.parametrize(
    ("changes", "images", "message"),
    [
        ({"max_steps": 300}, IMAGENET, "the warm-up of 10 epochs has 25020"),
        ({"out_dim": 4096, "batch_size": 32}, 1000, "more prototypes than images"),
        ({"epochs": 10, "warmup_teacher_temp_epochs": 30}, IMAGENET, "warmup_teacher_temp_epochs is 30 in a run of 10"),
        ({"start": "a.pth"}, IMAGENET, r"is 0\.001 .*fell from 80 to 10 %"),
        ({**GRAM, "gram_teacher": "run", "gram_begin": 100, "gram_refresh": 250_200}, IMAGENET, "never refreshed"),
        ({**GRAM, "gram_teacher": "run", "gram_begin": 100}, IMAGENET, "within the warm-up"),
        ({"momentum_teacher": 0.999, "epochs": 20}, 20_480, "random first weights"),
    ],
)
def test_a_doubtful_run_is_warned(changes: dict, images: int, message: str):
    config = replace(PretrainConfig(batch_size=512, out_dim=1024), **changes)
    assert any(re.search(message, line) for line in warnings(config, images))


def test_koleo_without_neighbors_is_refused_even_in_a_trial():
    config = PretrainConfig(objectives=("dino", "koleo"), batch_size=8, koleo_neighbors="process", max_steps=1)
    assert not warnings(config, 8000, processes=4)
    with pytest.raises(ConflictError, match="but there are 1 in a micro-batch"):
        warnings(config, 8000, processes=8)


def test_a_refused_run_leaves_nothing_and_a_resumed_run_is_not_asked_again(tmp_path: Path, train, capsys):
    doubtful = {"epochs": 100, "save_every": 1, "momentum_teacher": 1.0}
    with pytest.raises(ConflictError, match="--allow-conflicts"):
        train(tmp_path / "run", **doubtful)
    assert not (tmp_path / "run").exists()
    train(tmp_path / "run", **doubtful, max_steps=1)
    assert "WARNING" not in capsys.readouterr().out
    train(tmp_path / "run", **doubtful, max_steps=2, resume=True, allow_conflicts=True)

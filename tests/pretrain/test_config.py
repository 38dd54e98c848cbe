"""Settings are checked when built, and the recipes hold the published ones."""

from pathlib import Path

import pytest

from dino_dense.config import command_line, schema
from dino_dense.pretrain.config import FREE_ON_RESUME, PretrainConfig

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "pretrain").glob("*.yaml"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adam"}, "optimizer is 'adam', .*did you mean adamw"),
        ({"dtype": "float16"}, "dtype is 'float16', expected one of auto, fp32, tf32, bf16, fp16"),
        ({"batch_size": 0}, "batch_size is 0, expected from 1"),
        ({"momentum_teacher": 1.5}, r"momentum_teacher is 1\.5, expected from 0 to 1"),
        ({"blur_probs": (1.0, 2.0, 0.5)}, "blur_probs is"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"teacher_temp": 0.0}, "teacher_temp is 0"),
        ({"global_crops_scale": (0.9, 0.4)}, r"global_crops_scale is \(0\.9, 0\.4\), expected a range"),
        ({"epochs": 5}, "warmup_epochs is 10, more than epochs = 5"),
    ],
)
def test_settings_that_cannot_be_meant(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        PretrainConfig(**changes)


def test_every_field_is_an_option_with_its_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        command_line.parse(PretrainConfig, prog="p", description="d", argv=["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--teacher-temp", "--freeze-last-layer", "--resume", "--accumulate"):
        assert option in text
    assert set(schema.to_plain(PretrainConfig())) >= FREE_ON_RESUME


def recipe(path: Path) -> PretrainConfig:
    return command_line.parse(PretrainConfig, prog="p", description="d", argv=["--config", str(path)])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_and_say_where_they_come_from(path: Path):
    recipe(path)
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for item in ("Paper:", "Command:", "Cost:", "Expected:"):
        assert any(item in line for line in header), f"{path.name} has no {item}"


def test_vanilla_recipe_is_the_published_default():
    vanilla = recipe(next(path for path in RECIPES if path.stem == "vits16_100ep"))
    assert vanilla == PretrainConfig(out=vanilla.out, data=vanilla.data)

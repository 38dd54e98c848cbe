"""Two checkpoints side by side, as the page of `tasks.studio` compares them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.masks import write_mask
from tasks import RunOptions
from tasks.studio import SHIPPED, StudioConfig, open_backbones
from tasks.studio_page.compare import agreement, compare, run_both
from tasks.studio_page.live import Live
from tasks.studio_page.scene import Studio
from tests.clip_files import moving_disc, moving_mask, write_clip
from tests.color_backbone import ColorReader, color_backbone

SIZE = (96, 128)
CAPTION = 22  # pixels above a tile


class RowReader(ColorReader):
    """A patch's features are its row: the bright square is nothing to it."""

    def features(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = (side // self.patch_size for side in images.shape[-2:])
        angle = torch.linspace(0, 1.5, height)[:, None].expand(height, width)
        return {"patches": torch.stack([angle.cos(), angle.sin(), angle * 0]).expand(len(images), -1, -1, -1)}


def studio(tmp_path: Path, second: ColorReader) -> Studio:
    (tmp_path / "files").mkdir()
    return Studio([color_backbone(), color_backbone(second)], tmp_path / "files", 96, 2**20)


def halves(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tiles of A and of B, without captions."""
    middle = rgb.shape[1] // 2
    return rgb[CAPTION:, :middle], rgb[CAPTION:, middle:]


def test_the_same_network_gives_the_same_beside_itself(tmp_path: Path):
    page = studio(tmp_path, ColorReader())
    scene = page.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    Image.fromarray(moving_disc(20, SIZE)).save(tmp_path / "other.png")
    result = compare(page, scene, page.open(tmp_path / "other.png"), (20, 48), 0.6)
    assert result.matches is not None
    for picture in (result.regions, result.components, result.matches):
        one, two = halves(picture)
        assert (one == two).all()
    first, second = result.said.rstrip(".").split(". B: ")
    assert first.removeprefix("A: ") == second
    assert "12x16 patches" in second


def test_another_network_gives_another_region_and_no_match_without_an_image(tmp_path: Path):
    page = studio(tmp_path, RowReader())
    scene = page.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    result = compare(page, scene, None, (20, 48), 0.9)
    assert result.matches is None
    assert "cosine" not in result.said
    assert not np.equal(*halves(result.regions)).all()
    assert not np.equal(*halves(result.components)).all()
    scene.go(3)
    assert "region" in compare(page, scene, None, (24, 48), 0.9).said
    with pytest.raises(ValueError, match="not in the image"):
        compare(page, scene, None, (128, 3), 0.9)


def test_a_run_of_both_says_how_far_they_agree(tmp_path: Path):
    page = studio(tmp_path, RowReader())
    scene = page.open(write_clip(tmp_path / "clip.mp4", size=SIZE))
    page.paint(scene, moving_mask(0, SIZE) > 0, 3)
    one, two, said = run_both(page, scene, 2, Live())
    assert one.is_file()
    assert two.is_file()
    share = agreement(one.parent / "masks", two.parent / "masks")
    assert 0 < share < 1
    assert f"{100 * share:.1f} %" in said
    assert scene.masks == one.parent / "masks", "frames show the masks of the first"
    again = run_both(page, scene, 2, Live())
    assert not one.exists()
    assert not two.exists()
    assert all(path.is_file() for path in again[:2])


def test_agreement_is_the_mean_iou_of_objects_that_are_there(tmp_path: Path):
    def masks(name: str, *frames: list[int]) -> Path:
        for number, row in enumerate(frames):
            write_mask(tmp_path / name / f"{number}.png", np.array([row], np.uint8))
        return tmp_path / name

    one = masks("one", [1, 1, 2, 0], [0, 0, 0, 0], [1, 0, 0, 0])
    two = masks("two", [1, 0, 2, 2], [0, 0, 0, 0], [0, 0, 3, 0])
    assert agreement(one, two) == pytest.approx((1 / 2 + 1 / 2 + 0 + 0) / 4)
    assert agreement(one, one) == 1
    assert agreement(masks("none", [0, 0]), masks("none", [0, 0])) == 1


def test_options_on_a_file_are_for_the_first_checkpoint_alone():
    name = "random:vit_micro_patch8_64"
    options = RunOptions(ckpt=name, heads=1, device="cpu", norm=False)
    assert len(open_backbones(options, StudioConfig())) == 1
    first, second = open_backbones(options, StudioConfig(beside=name))
    assert (first.num_heads, second.num_heads > 1) == (1, True)
    assert (first.norm, second.norm) == (False, False)


def test_without_a_checkpoint_the_page_shows_the_network_of_the_package(caplog: pytest.LogCaptureFixture):
    (backbone,) = open_backbones(RunOptions(), StudioConfig())
    assert backbone.spec == SHIPPED
    assert SHIPPED in caplog.text

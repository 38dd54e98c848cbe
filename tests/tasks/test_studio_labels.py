"""Classes of a picture from reference pictures, as the page of `tasks.studio` finds them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataError
from data.masks import read_ids, write_mask
from tasks.studio_page.labels import References, label, label_and_write, open_references, put_masks
from tasks.studio_page.scene import Studio
from tests.color_backbone import color_backbone

SIZE = (96, 128)
YELLOW, BLUE = (230, 200, 40), (40, 60, 230)
ONE, TWO = (slice(16, 48), slice(16, 48)), (slice(48, 80), slice(80, 112))


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    (tmp_path / "files").mkdir()
    return Studio([color_backbone()], tmp_path / "files", 96, 2**20)


def picture(path: Path, size: tuple[int, int] = SIZE, **squares: tuple[slice, slice]) -> str:
    """A gray picture with a yellow and a blue square."""
    rgb = np.full((*size, 3), 90, np.uint8)
    for name, color in (("yellow", YELLOW), ("blue", BLUE)):
        if name in squares:
            rgb[squares[name]] = color
    Image.fromarray(rgb).save(path)
    return str(path)


def mask(identity: int, square: tuple[slice, slice], size: tuple[int, int] = SIZE) -> np.ndarray:
    ids = np.zeros(size, np.uint8)
    ids[square] = identity
    return ids


def references(tmp_path: Path, studio: Studio) -> References:
    """Two pictures of other sizes, with a class each."""
    large = (192, 128)
    return open_references(
        studio, [picture(tmp_path / "a.png", yellow=ONE), picture(tmp_path / "b.png", large, blue=ONE)]
    )


def test_each_region_gets_the_class_of_its_reference(tmp_path: Path, studio: Studio):
    made = references(tmp_path, studio)
    query = studio.open(picture(tmp_path / "q.png", yellow=TWO, blue=ONE))
    with pytest.raises(ValueError, match="no reference image has a class yet"):
        label(studio, made.pictures, query)
    studio.click(made.pictures[0], (30, 30), 4)
    studio.paint(made.pictures[1], mask(1, ONE, (192, 128)) > 0, 7)
    seen, path = label_and_write(studio, made, query)
    truth = mask(4, TWO) + mask(7, ONE)
    assert (read_ids(path) == truth).mean() > 0.95
    assert set(np.unique(read_ids(path))) == {0, 4, 7}
    assert seen.shape == (*SIZE, 3)
    made.pictures[1].undo()
    assert set(np.unique(label(studio, made.pictures, query))) == {0, 4}
    made.close()
    query.close()
    assert list(studio.folder.iterdir()) == []


def test_a_reference_without_a_class_teaches_nothing(tmp_path: Path, studio: Studio):
    """Else its objects that nobody marked would be background."""
    same = [picture(tmp_path / f"{name}.png", yellow=ONE) for name in ("a", "b", "c")]
    made = open_references(studio, same)
    studio.paint(made.pictures[0], mask(1, ONE) > 0, 1)
    query = studio.open(picture(tmp_path / "q.png", yellow=TWO))
    ids = label(studio, made.pictures, query)
    assert (ids == label(studio, made.pictures[:1], query)).all()
    assert (ids == mask(1, TWO)).mean() > 0.95


def test_class_masks_are_of_the_image_of_their_name(tmp_path: Path, studio: Studio):
    made = references(tmp_path, studio)
    (tmp_path / "masks").mkdir()
    files = [str(tmp_path / "masks" / name) for name in ("a.png", "b.png")]
    write_mask(files[0], mask(1, ONE))
    write_mask(files[1], mask(2, ONE, (192, 128)))
    put_masks(made, files)
    assert [set(np.unique(shown.ids)) for shown in made.pictures] == [{0, 1}, {0, 2}]
    query = studio.open(picture(tmp_path / "q.png", yellow=TWO, blue=ONE))
    assert (label(studio, made.pictures, query) == mask(1, TWO) + mask(2, ONE)).mean() > 0.95
    made.pictures[0].undo()
    assert not made.pictures[0].ids.any()
    write_mask(tmp_path / "masks" / "c.png", mask(1, ONE))
    with pytest.raises(ValueError, match=r"a class mask named c: expected the name of a reference image, a, b"):
        put_masks(made, [str(tmp_path / "masks" / "c.png")])
    write_mask(files[1], mask(2, ONE))
    with pytest.raises(DataError, match=r"b\.png: 96x128 pixels .* have 192x128"):
        put_masks(made, files)


def test_references_that_cannot_be_used_leave_nothing(tmp_path: Path, studio: Studio):
    (tmp_path / "other").mkdir()
    same = [picture(tmp_path / "a.png", yellow=ONE), picture(tmp_path / "other" / "a.png", blue=ONE)]
    with pytest.raises(ValueError, match="two reference images have the same name"):
        open_references(studio, same)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises((DataError, ValueError)):
        open_references(studio, [same[0], str(tmp_path / "broken.png")])
    assert list(studio.folder.iterdir()) == []
    with pytest.raises(ValueError, match="first choose reference images"):
        _ = References().picture

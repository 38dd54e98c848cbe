"""The DAVIS reader: what a tree holds, what mask values mean, and what is refused."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data import DataError
from data.davis import VideoSequence, load_davis, read_prediction
from data.masks import PALETTE, read_foreground, read_ids, write_mask
from data.saliency import load_saliency
from tests.davis_files import all_masks
from tests.reference_files import davis_root

HEIGHT, WIDTH, FRAMES = 24, 32, 4
NAMES = ("bear", "camel", "dog-walk")


def two_objects(shift: int = 0) -> np.ndarray:
    ids = np.zeros((HEIGHT, WIDTH), np.uint8)
    ids[4:12, 4 + shift : 12 + shift] = 1
    ids[10:20, 16:24] = 2
    return ids


def jpeg(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.imencode(".jpg", picture)[1].tobytes()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A DAVIS-2017 tree of three sequences with two objects, all frames annotated."""
    root = tmp_path / "DAVIS"
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n".join(NAMES) + "\n")
    for number, name in enumerate(NAMES):
        frames = root / "JPEGImages" / "480p" / name
        frames.mkdir(parents=True)
        for index in reversed(range(FRAMES)):
            (frames / f"{index:05d}.jpg").write_bytes(jpeg(10 * number + index))
            write_mask(root / "Annotations" / "480p" / name / f"{index:05d}.png", two_objects(index))
    return root


def frame_path(root: Path, index: int, name: str = "bear") -> Path:
    return root / "JPEGImages" / "480p" / name / f"{index:05d}.jpg"


def mask_path(root: Path, index: int, name: str = "bear") -> Path:
    return root / "Annotations" / "480p" / name / f"{index:05d}.png"


def save_gray(path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path)


# ---- what a tree holds


def test_sequences_frames_and_masks_in_order(tree: Path) -> None:
    sequences = load_davis(tree)
    assert [sequence.name for sequence in sequences] == list(NAMES)
    bear = sequences[0]
    assert len(bear) == FRAMES
    assert bear.size == (HEIGHT, WIDTH)
    assert bear.num_objects == 2
    assert bear.has_ground_truth
    assert [path.stem for path in bear.frames] == [f"{index:05d}" for index in range(FRAMES)]
    np.testing.assert_array_equal(bear.first_mask(), two_objects())
    np.testing.assert_array_equal(all_masks(bear), [two_objects(index) for index in range(FRAMES)])


def test_frames_have_the_pixels_of_opencv_in_rgb(tree: Path) -> None:
    (bear,) = load_davis(tree, sequences=["bear"])
    for index, path in enumerate(bear.frames):
        np.testing.assert_array_equal(bear.read_frame(index)[..., ::-1], cv2.imread(str(path)))


def test_a_choice_of_sequences_and_frames_keeps_the_order_of_the_list(tree: Path) -> None:
    sequences = load_davis(tree, sequences=("dog-walk", "bear"), max_frames=2)
    assert [(sequence.name, len(sequence), len(sequence.masks)) for sequence in sequences] == [
        ("bear", 2, 2),
        ("dog-walk", 2, 2),
    ]


def test_the_list_of_the_2016_package_holds_pairs_of_paths(tree: Path) -> None:
    listed = tree / "ImageSets" / "480p" / "val.txt"
    listed.parent.mkdir()
    pairs = [
        f"/JPEGImages/480p/{name}/{i:05d}.jpg /Annotations/480p/{name}/{i:05d}.png"
        for name in ("camel", "bear")
        for i in range(FRAMES)
    ]
    listed.write_text("\n".join(pairs))
    assert [sequence.name for sequence in load_davis(tree, year=2016)] == ["camel", "bear"]


def test_another_resolution_is_another_folder(tree: Path) -> None:
    for kind in ("JPEGImages", "Annotations"):
        (tree / kind / "480p").rename(tree / kind / "Full-Resolution")
    assert len(load_davis(tree, resolution="Full-Resolution")) == len(NAMES)
    with pytest.raises(DataError, match=r"missing JPEGImages/480p, .* JPEGImages has Full-Resolution"):
        load_davis(tree)


def test_a_test_split_has_only_the_first_mask(tree: Path) -> None:
    for index in range(1, FRAMES):
        mask_path(tree, index).unlink()
    (bear,) = load_davis(tree, sequences=["bear"])
    assert not bear.has_ground_truth
    assert bear.masks[1:] == (None,) * (FRAMES - 1)
    assert bear.num_objects == 2
    with pytest.raises(DataError, match=r"00002\.jpg: no mask"):
        bear.read_mask(2)


def test_in_2016_every_value_above_0_is_the_object(tree: Path) -> None:
    (tree / "ImageSets" / "2016").mkdir()
    (tree / "ImageSets" / "2016" / "val.txt").write_text("bear\n")
    save_gray(mask_path(tree, 1), np.where(two_objects() > 0, 255, 0).astype(np.uint8))
    (bear,) = load_davis(tree, year=2016)
    assert bear.num_objects == 1
    for index in (0, 1):
        np.testing.assert_array_equal(bear.read_mask(index), two_objects() > 0)


def test_void_of_later_masks_is_background(tree: Path) -> None:
    ids = two_objects()
    ids[0] = 255
    save_gray(mask_path(tree, 1), ids)
    (bear,) = load_davis(tree, sequences=["bear"])
    np.testing.assert_array_equal(bear.read_mask(1), two_objects())


def test_real_sequences_are_read_as_their_files_say() -> None:
    for sequence in load_davis(davis_root(), year=2016, max_frames=2):
        assert sequence.num_objects == 1
        np.testing.assert_array_equal(sequence.read_frame(1)[..., ::-1], cv2.imread(str(sequence.frames[1])))
        stored = np.array(Image.open(sequence.masks[1] or ""))
        np.testing.assert_array_equal(sequence.read_mask(1) > 0, stored > 0)


# ---- how people name files


def rename_all(root: Path, rename: Callable[[Path], str]) -> None:
    for path in [*root.glob("JPEGImages/480p/*/*"), *root.glob("Annotations/480p/*/*")]:
        path.rename(path.with_name(rename(path)))


def test_numbers_without_leading_zeros_are_read_in_their_order(tree: Path) -> None:
    rename_all(tree, lambda path: f"frame{8 + int(path.stem)}{path.suffix}")
    bear = load_davis(tree)[0]
    assert [path.stem for path in bear.frames] == ["frame8", "frame9", "frame10", "frame11"]
    assert [path.stem for path in bear.masks if path] == ["frame8", "frame9", "frame10", "frame11"]
    np.testing.assert_array_equal(
        [bear.read_mask(index) for index in range(len(bear))], [two_objects(index) for index in range(FRAMES)]
    )
    assert [path.stem for path in load_davis(tree, max_frames=3)[0].frames] == ["frame8", "frame9", "frame10"]


@pytest.mark.parametrize("ending", [".jpeg", ".JPG", ".jfif", ".png", ".webp", ".bmp"])
def test_frames_of_other_endings(tree: Path, ending: str) -> None:
    pixels = load_davis(tree)[0].read_frame(1)
    for path in list((tree / "JPEGImages").rglob("*.jpg")):
        if ending in (".jpeg", ".JPG", ".jfif"):
            path.rename(path.with_suffix(ending))
        else:
            Image.open(path).save(path.with_suffix(ending), lossless=True)
            path.unlink()
    bear = load_davis(tree)[0]
    assert [path.name for path in bear.frames] == [f"{index:05d}{ending}" for index in range(FRAMES)]
    assert np.abs(bear.read_frame(1).astype(int) - pixels).max() <= (0 if ending.startswith(".j") else 2)


def test_two_frames_of_one_name_are_refused(tree: Path) -> None:
    Image.open(frame_path(tree, 1)).save(frame_path(tree, 1).with_suffix(".png"))
    with pytest.raises(DataError, match=r"00001\.jpg and 00001\.png: two files of one name"):
        load_davis(tree)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_may_begin_with_a_byte_order_mark(tree: Path, encoding: str) -> None:
    (tree / "ImageSets" / "2017" / "val.txt").write_text("camel\r\nbear\r\n", encoding=encoding)
    assert [sequence.name for sequence in load_davis(tree)] == ["camel", "bear"]


def test_a_list_of_frames_with_backslashes(tree: Path) -> None:
    line = r"\JPEGImages\480p\bear\00000.jpg \Annotations\480p\bear\00000.png"
    (tree / "ImageSets" / "2017" / "val.txt").write_text(line)
    assert [sequence.name for sequence in load_davis(tree)] == ["bear"]


def test_leftovers_of_systems_are_no_frames(tree: Path) -> None:
    for path in (frame_path(tree, 1), mask_path(tree, 1)):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\26\7")
        (path.parent / "@eaDir").mkdir()
        (path.parent / "Thumbs.db").write_bytes(b"x")
    assert len(load_davis(tree)[0]) == FRAMES


def test_missing_numbers_are_said_and_a_steady_step_is_not(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    rename_all(tree, lambda path: f"{5 * int(path.stem):05d}{path.suffix}")
    load_davis(tree)
    assert caplog.messages == []
    for path in (tree / "JPEGImages/480p/bear/00010.jpg", tree / "Annotations/480p/bear/00010.png"):
        path.unlink()
    load_davis(tree)
    (line,) = caplog.messages
    assert "bear: 3 frames whose numbers have gaps (the first after 5)" in line


def as_16_bits(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(ids.astype(np.uint16))


def as_equal_channels(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.repeat(ids[..., None], 3, axis=2))


def as_opaque(ids: np.ndarray) -> Image.Image:
    return Image.fromarray(np.stack([ids, np.full_like(ids, 255)], axis=-1))


@pytest.mark.parametrize("convert", [as_16_bits, as_equal_channels, as_opaque])
@pytest.mark.parametrize("ending", [".png", ".PNG", ".tif"])
def test_ids_of_other_modes_and_formats(tree: Path, convert: Callable, ending: str) -> None:
    for path in list((tree / "Annotations").rglob("*.png")):
        ids = read_ids(path)
        path.unlink()
        convert(ids).save(path.with_suffix(ending))
    bear = load_davis(tree)[0]
    np.testing.assert_array_equal(
        [bear.read_mask(index) for index in range(len(bear))], [two_objects(index) for index in range(FRAMES)]
    )


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (as_16_bits(two_objects() * np.uint16(1000)), r"values from 0 to 2000 .* from 0 to 254.*Relabel"),
        (Image.fromarray(two_objects() * np.float32(0.5)), r"values from 0\.0 to 1\.0"),
        (Image.fromarray(np.stack([two_objects(), two_objects() * 100], axis=-1)), "transparent pixels"),
    ],
)
def test_values_that_are_no_ids_are_refused(image: Image.Image, message: str, tmp_path: Path) -> None:
    image.save(tmp_path / "a.tif")
    with pytest.raises(DataError, match=rf"a\.tif: .*{message}"):
        read_ids(tmp_path / "a.tif")


# ---- what is refused


def no_folder(root: Path) -> None:
    root.rename(root.with_name("elsewhere"))


def parent_of_the_tree(root: Path) -> None:
    (root / "DAVIS").mkdir()
    for entry in list(root.iterdir()):
        if entry.name != "DAVIS":
            entry.rename(root / "DAVIS" / entry.name)


def no_list(root: Path) -> None:
    (root / "ImageSets" / "2017" / "val.txt").rename(root / "ImageSets" / "2017" / "train.txt")


def no_frames(root: Path) -> None:
    for index in range(FRAMES):
        frame_path(root, index).unlink()


def gaps(root: Path) -> None:
    save_gray(mask_path(root, 0), (two_objects() * 2).astype(np.uint8))


def void(root: Path) -> None:
    save_gray(mask_path(root, 0), np.where(two_objects() > 0, 255, 0).astype(np.uint8))


def colors(root: Path) -> None:
    Image.open(mask_path(root, 0)).convert("RGB").save(mask_path(root, 0))


def truncated_frame(root: Path) -> None:
    frame_path(root, 0).write_bytes(jpeg()[:-40])


def damaged_mask(root: Path) -> None:
    whole = mask_path(root, 0).read_bytes()
    mask_path(root, 0).write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_folder, r"DAVIS: no such folder; expected a DAVIS tree"),
        (parent_of_the_tree, r"not a DAVIS tree: expected .* found DAVIS; .* did you mean .*DAVIS/DAVIS\?"),
        (no_list, r"2017/val\.txt: no such list for year 2017 .* has ImageSets/2017/train\.txt"),
        (
            lambda root: (root / "ImageSets" / "2017" / "val.txt").write_text("\n"),
            r"val\.txt: the list is empty",
        ),
        (
            lambda root: (root / "ImageSets" / "2017" / "val.txt").write_text("bear\n..\n"),
            r"val\.txt: '\.\.' is no name of a sequence",
        ),
        (no_frames, r"bear: no \*\.jpg frames"),
        (
            lambda root: mask_path(root, 0).unlink(),
            r"bear/00000\.png: no such file; .* mask of its first frame",
        ),
        (
            lambda root: save_gray(mask_path(root, 0), np.ones((HEIGHT, WIDTH - 1), np.uint8)),
            r"bear/00000\.png: 24x31 pixels .* has 24x32",
        ),
        (lambda root: save_gray(mask_path(root, 0), 0 * two_objects()), r"bear/00000\.png: .* no object"),
        (gaps, r"bear/00000\.png: object ids \[2, 4\] have gaps.*relabel them consecutively as 1\.\.2"),
        (void, r"bear/00000\.png: value 255 \(void.*year 2016.*void='background'"),
        (colors, r"bear/00000\.png: a mask of mode RGB.*Colors are not ids"),
        (truncated_frame, r"bear/00000\.jpg: truncated JPEG"),
        (lambda root: frame_path(root, 0).write_bytes(b""), r"bear/00000\.jpg: not a JPEG"),
        (damaged_mask, r"bear/00000\.png: unreadable mask"),
    ],
)
def test_a_tree_that_cannot_be_used_is_refused_at_once(
    tree: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(tree)
    with pytest.raises(DataError, match=message):
        load_davis(tree)


def test_an_unknown_sequence_gets_the_near_names(tree: Path) -> None:
    with pytest.raises(DataError, match=r"no sequence 'dogwalk' .*did you mean dog-walk\?"):
        load_davis(tree, sequences=["bear", "dogwalk"])
    with pytest.raises(DataError, match="no sequence asked for"):
        load_davis(tree, sequences=[])


def test_years_and_frame_counts_out_of_range(tree: Path) -> None:
    with pytest.raises(DataError, match="year 2018"):
        load_davis(tree, year=2018)
    with pytest.raises(DataError, match="max_frames 0"):
        load_davis(tree, max_frames=0)


def test_void_of_the_first_mask_may_count_as_background(tree: Path) -> None:
    ids = two_objects()
    ids[0] = 255
    save_gray(mask_path(tree, 0), ids)
    (bear,) = load_davis(tree, sequences=["bear"], void="background")
    np.testing.assert_array_equal(bear.first_mask(), two_objects())


def test_later_frames_of_another_size_are_refused(tree: Path) -> None:
    frame_path(tree, 2).write_bytes(jpeg(height=HEIGHT + 1))
    save_gray(mask_path(tree, 3), np.ones((HEIGHT, WIDTH + 1), np.uint8))
    (bear,) = load_davis(tree, sequences=["bear"])
    with pytest.raises(DataError, match=r"00002\.jpg: 25x32 pixels"):
        bear.read_frame(2)
    with pytest.raises(DataError, match=r"00003\.png: 24x33 pixels"):
        bear.read_mask(3)


def jpeg_with_thumbnail() -> bytes:
    """A progressive JPEG whose header embeds a whole JPEG, end marker included."""
    buffer = io.BytesIO()
    picture = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    Image.fromarray(picture).save(buffer, "JPEG", progressive=True, comment=jpeg(height=8, width=8))
    return buffer.getvalue()


def one_frame(path: Path) -> VideoSequence:
    return VideoSequence("video", (path,), (None,))


@pytest.mark.parametrize("encoded", [jpeg(), jpeg_with_thumbnail()], ids=["baseline", "progressive"])
def test_a_jpeg_cut_anywhere_is_refused(encoded: bytes, tmp_path: Path) -> None:
    path = tmp_path / "00000.jpg"
    path.write_bytes(encoded + b"appended by the camera")
    assert one_frame(path).size == (HEIGHT, WIDTH)
    for length in range(len(encoded) - 1):
        path.write_bytes(encoded[:length])
        with pytest.raises(DataError, match=r"00000\.jpg: (not a JPEG|truncated JPEG)"):
            one_frame(path).read_frame(0)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_mask_cut_anywhere_is_refused_or_whole(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("mask") / "00000.png"
    write_mask(path, two_objects())
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with contextlib.suppress(DataError):
        np.testing.assert_array_equal(read_ids(path), two_objects())


# ---- masks on disk


def test_written_masks_hold_the_ids_and_show_the_voc_colors(tmp_path: Path) -> None:
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_mask(tmp_path / "deep" / "er" / "00000.png", ids)
    np.testing.assert_array_equal(read_ids(tmp_path / "deep" / "er" / "00000.png"), ids)
    with Image.open(tmp_path / "deep" / "er" / "00000.png") as image:
        assert image.mode == "P"
        shown = np.array(image.convert("RGB")).reshape(256, 3)
    np.testing.assert_array_equal(shown, PALETTE)
    first_colors = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128]]
    assert PALETTE[:6].tolist() == first_colors
    assert len(np.unique(PALETTE, axis=0)) == 256


def test_a_write_that_fails_leaves_the_old_mask_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "00000.png"
    write_mask(path, two_objects())

    def full_disk(_: Image.Image, target: Path, **__: object) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_mask(path, 0 * two_objects())
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_array_equal(read_ids(path), two_objects())


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGB", "RGBA", "LA"])
def test_foreground_is_read_from_any_mode(mode: str, tmp_path: Path) -> None:
    foreground = two_objects() > 0
    path = tmp_path / "00000.png"
    Image.fromarray(np.where(foreground, 255, 0).astype(np.uint8)).convert(mode).save(path)
    np.testing.assert_array_equal(read_foreground(path), foreground)


def test_predictions_are_read_by_the_frames_own_names(tree: Path, tmp_path: Path) -> None:
    (bear,) = load_davis(tree, sequences=["bear"])
    for index in range(1, FRAMES - 1):
        write_mask(tmp_path / "bear" / f"{index:05d}.png", two_objects(index))
        np.testing.assert_array_equal(read_prediction(tmp_path, bear, index), two_objects(index))


def test_predictions_that_cannot_be_scored_are_refused(tree: Path, tmp_path: Path) -> None:
    (bear,) = load_davis(tree, sequences=["bear"])
    write_mask(tmp_path / "bear" / "00001.png", two_objects())
    with pytest.raises(DataError, match=r"bear/00002\.png: no such file"):
        read_prediction(tmp_path, bear, 2)
    write_mask(tmp_path / "bear" / "00002.png", two_objects() + 1)
    with pytest.raises(DataError, match=r"bear/00002\.png: predicted id 3, .* 2 object"):
        read_prediction(tmp_path, bear, 2)
    write_mask(tmp_path / "bear" / "00002.png", two_objects()[:-1])
    with pytest.raises(DataError, match=r"bear/00002\.png: 23x32 pixels"):
        read_prediction(tmp_path, bear, 2)


@pytest.mark.parametrize("orientation", [3, 6])
def test_frames_are_read_as_stored_in_every_task(tree: Path, orientation: int):
    """A camera's tag turns neither the frame nor its mask: a half turn keeps the sizes, and would raise no error."""
    path = frame_path(tree, 0)
    stored = load_davis(tree, 2017, "val", ("bear",))[0].read_frame(0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    segment = b"\xff\xe1" + (len(exif.tobytes()) + 2).to_bytes(2, "big") + exif.tobytes()
    encoded = path.read_bytes()
    path.write_bytes(encoded[:2] + segment + encoded[2:])
    np.testing.assert_array_equal(load_davis(tree, 2017, "val", ("bear",))[0].read_frame(0), stored)
    frames = load_saliency(tree, "davis", year=2017, sequences=("bear",))
    np.testing.assert_allclose(frames[0].read()[0].astype(int), stored, atol=3)

"""Clips in and out: every frame, at its time, upright; and what is no video says so."""

import resource
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from data import DataError, video_writer
from data.clips import is_video, open_clip
from data.video import VideoFrames
from data.video_writer import VideoWriteError, VideoWriter
from tests.clip_files import facts, moving_disc, moving_mask, turn, write_clip, write_sound

SIZE = (48, 64)


def near(found: np.ndarray, expected: np.ndarray) -> bool:
    """The same picture, but for what compression does."""
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 8


def copy(source: Path, out: Path, **choices: int) -> Path:
    clip = open_clip(source, **choices)
    with VideoWriter(out, clip.size, clip.shown_rate) as video:
        for frame in clip:
            video.add(frame.rgb, frame.seconds)
    return out


@pytest.mark.parametrize("rate", [10, 25, Fraction(30000, 1001), Fraction(24000, 1001), 60])
def test_a_copy_has_the_frames_the_size_and_the_rate_of_its_source(tmp_path: Path, rate: Fraction):
    source = write_clip(tmp_path / "a.mp4", length=9, rate=rate)
    assert facts(copy(source, tmp_path / "b.mp4")) == (9, SIZE, rate, "h264")
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.mp4", "b.mp4"]
    frames = list(open_clip(tmp_path / "b.mp4"))
    assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(9)]
    assert all(near(frame.rgb, moving_disc(index, SIZE)) for index, frame in enumerate(frames))


def test_every_nth_frame_lasts_as_long(tmp_path: Path):
    source = write_clip(tmp_path / "a.mp4", length=9)
    assert facts(copy(source, tmp_path / "b.mp4", every=3)) == (3, SIZE, Fraction(10, 3), "h264")
    clip = open_clip(source, every=3, max_frames=2)
    assert (len(clip), [frame.name for frame in clip]) == (2, ["00000", "00003"])
    assert all(near(frame.rgb, moving_disc(3 * index, SIZE)) for index, frame in enumerate(clip))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path, ending: str):
    times = [0, 40, 300, 333, 900, 1000]
    source = write_clip(tmp_path / f"a.{ending}", length=6, times=times)
    frames = list(open_clip(copy(source, tmp_path / "b.mp4")))
    assert [round(1000 * frame.seconds) for frame in frames] == pytest.approx(times, abs=1)
    assert near(frames[5].rgb, moving_disc(5, SIZE))


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (64, 16), (90, 24), (50, 50), (49, 65), (33, 64), (90, 161)])
def test_any_size_and_an_odd_one_gains_a_row(tmp_path: Path, size: tuple[int, int]):
    even = size[0] + size[0] % 2, size[1] + size[1] % 2
    with VideoWriter(tmp_path / "b.mp4", size, Fraction(10)) as video:
        for index in range(3):
            video.add(moving_disc(index, size), index / 10)
    assert facts(tmp_path / "b.mp4") == (3, even, 10, "h264")
    frame = next(iter(open_clip(tmp_path / "b.mp4"))).rgb
    assert near(frame[: size[0], : size[1]], moving_disc(0, size))


def test_a_folder_of_frames_is_a_clip(tmp_path: Path):
    for index in (10, 9, 2):
        Image.fromarray(moving_disc(index, SIZE)).save(tmp_path / f"f{index}.png")
    clip = open_clip(tmp_path)
    assert (clip.name, clip.size, len(clip)) == (tmp_path.name, SIZE, 3)
    assert [frame.name for frame in clip] == ["f2", "f9", "f10"]
    assert (next(iter(clip)).rgb == moving_disc(2, SIZE)).all()
    Image.fromarray(moving_disc(0, (40, 64))).save(tmp_path / "f9.png")
    with pytest.raises(DataError, match=r"f9\.png: 40x64 pixels .* first frame has 48x64"):
        list(clip)


def test_two_clips_in_folders_are_asked_about(tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(moving_disc(index, SIZE)).save(tmp_path / name / f"{name}{index}.png")
    with pytest.raises(DataError, match=r"2 folders with pictures: .*cat \(2 pictures\), .*dog \(2 .*Which"):
        open_clip(tmp_path)
    assert len(open_clip(tmp_path / "dog")) == 2


def shown(rgb: np.ndarray, orientation: tuple[int, int, int, int]) -> np.ndarray:
    """Every pixel (x, y) moved to (a x + c y, b x + d y), by the definition; then into the picture."""
    a, b, c, d = orientation
    height, width = rgb.shape[:2]
    y, x = np.mgrid[:height, :width]
    u, v = a * x + c * y, b * x + d * y
    u, v = u - u.min(), v - v.min()
    out = np.zeros((v.max() + 1, u.max() + 1, 3), np.uint8)
    out[v, u] = rgb
    return out


@pytest.mark.parametrize("mirror", [1, -1])
@pytest.mark.parametrize("turns", range(4))
def test_all_eight_orientations_are_upright(tmp_path: Path, turns: int, mirror: int):
    a, b, c, d = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)][turns]
    orientation = (a, b, mirror * c, mirror * d)
    source = turn(write_clip(tmp_path / "a.mp4"), orientation)
    clip = open_clip(source)
    assert clip.size == ((48, 64) if a else (64, 48))
    for index, frame in enumerate(clip):
        assert near(frame.rgb, shown(moving_disc(index, SIZE), orientation))
    assert near(VideoFrames([source])[2].decode(), shown(moving_disc(2, SIZE), orientation))


KINDS = {
    "av1.mp4": ("libsvtav1", "yuv420p", {}),
    "av1.mkv": ("libsvtav1", "yuv420p", {}),
    "live.webm": ("libvpx-vp9", "yuv420p", {"live": "1"}),
    "live_vp8.webm": ("libvpx", "yuv420p", {"live": "1"}),
    "a.ts": ("mpeg2video", "yuv420p", {}),
    "h264.ts": ("libx264", "yuv420p", {}),
    "a.gif": ("gif", "rgb8", {}),
    "a.avi": ("mjpeg", "yuvj420p", {}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {}),
    "a.wmv": ("wmv2", "yuv420p", {}),
    "a.flv": ("flv", "yuv420p", {}),
    "hevc10.mp4": ("libx265", "yuv420p10le", {}),
    "prores.mov": ("prores_ks", "yuv422p10le", {}),
    "frag.mp4": ("libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "raw.h264": ("libx264", "yuv420p", {}),
    "gray.mkv": ("libx264", "gray", {}),
    "UPPER.MKV": ("libx264", "yuv444p", {}),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_people_have(tmp_path: Path, name: str):
    codec, pixels, options = KINDS[name]
    if codec not in av.codecs_available:
        pytest.skip(f"PyAV has no {codec} encoder here")
    source = write_clip(tmp_path / name, length=12, codec=codec, pixels=pixels, options=options)
    clip = open_clip(source)
    assert (clip.size, clip.shown_rate) == (SIZE, 10 if name != "raw.h264" else clip.shown_rate)
    frames = list(clip)
    assert [frame.name for frame in frames] == [f"{index:05d}" for index in range(12)]
    if name != "raw.h264":  # it has no times
        assert [frame.seconds for frame in frames] == pytest.approx([index / 10 for index in range(12)], abs=2e-3)
    for index, frame in enumerate(frames):
        bright = frame.rgb[..., 1] > 150
        truth = moving_mask(index, SIZE) > 0
        assert (bright & truth).sum() / (bright | truth).sum() > 0.8
    assert is_video(source)


@pytest.mark.parametrize("ending", ["gif", "png", "webp", "tif"])
def test_an_animated_picture_is_a_clip(tmp_path: Path, ending: str):
    pictures = [Image.fromarray(moving_disc(index, SIZE)) for index in range(5)]
    path = tmp_path / f"a.{ending}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **({} if ending == "tif" else {"duration": 200}))
    clip = open_clip(path, every=2)
    assert (len(clip), clip.size, clip.name, is_video(path)) == (3, SIZE, "a", True)
    assert clip.shown_rate == (12 if ending == "tif" else Fraction(5, 2))
    for index, frame in enumerate(clip):
        assert frame.name == f"{2 * index:05d}"
        assert near(frame.rgb, moving_disc(2 * index, SIZE))
    pictures[0].save(tmp_path / f"still.{ending}")
    assert not is_video(tmp_path / f"still.{ending}")
    with pytest.raises(DataError, match="a picture, expected a video"):
        open_clip(tmp_path / f"still.{ending}")


def test_times_begin_with_the_first_frame(tmp_path: Path):
    source = write_clip(tmp_path / "a.mkv", length=4, times=[5000, 5100, 5200, 5300])
    assert [frame.seconds for frame in open_clip(source)] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)


def test_pretraining_says_which_codec_decord_lacks(tmp_path: Path):
    if "libsvtav1" not in av.codecs_available:
        pytest.skip("PyAV has no libsvtav1 encoder here")
    source = write_clip(tmp_path / "a.mp4", codec="libsvtav1")
    with pytest.raises(DataError, match=r"a\.mp4: .*no decoder for its av1 pictures: convert it to H\.264"):
        VideoFrames([source])


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc/self/statm")
def test_frames_are_decoded_no_further_than_they_are_read(tmp_path: Path):
    """However slow the reader is: 900 frames of 240 x 320 would be 200 MiB."""

    def resident_mib() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    clip = open_clip(write_clip(tmp_path / "a.mp4", length=900, size=(240, 320)))
    frames = iter(clip)
    next(frames)
    before = resident_mib()
    for _ in range(5):
        time.sleep(0.2)
        next(frames)
    assert resident_mib() - before < 50


@pytest.mark.parametrize("every", [1, 2, 7, 50, 60])
def test_every_way_of_reading_gives_the_same_frames(tmp_path: Path, every: int):
    source = turn(write_clip(tmp_path / "a.mp4", length=130))
    whole = list(open_clip(source))
    found = list(open_clip(source, every=every))
    assert [frame.name for frame in found] == [f"{index:05d}" for index in range(0, 130, every)]
    for frame in found:
        assert near(frame.rgb, whole[int(frame.name)].rgb)
        assert frame.seconds == pytest.approx(whole[int(frame.name)].seconds)


def test_one_frame_is_a_video(tmp_path: Path):
    source = write_clip(tmp_path / "a.mp4", length=1)
    assert facts(copy(source, tmp_path / "b.mp4"))[:3] == (1, SIZE, 10)


def test_what_is_no_video_says_so(tmp_path: Path):
    whole = write_clip(tmp_path / "a.mp4", length=60, options={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    for share in (0.3, 0.8):
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        with pytest.raises(DataError, match=r"cut\.mp4: .*(decoded|short)"):
            list(open_clip(cut))
    empty = tmp_path / "empty.mp4"
    empty.write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.mp4: not a video that can be decoded"):
        open_clip(empty)
    with pytest.raises(DataError, match=r"sound\.mp4: .*no picture stream"):
        open_clip(write_sound(tmp_path / "sound.mp4"))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="a picture, expected a video"):
        open_clip(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        open_clip(tmp_path / "none.mp4")
    with pytest.raises(ValueError, match="every is 0"):
        open_clip(whole, every=0)


def test_a_file_with_a_picture_stream_and_no_frames(tmp_path: Path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    with pytest.raises(DataError, match=r"a\.mkv: (a video without frames|not a video that can be decoded)"):
        open_clip(tmp_path / "a.mkv")


@pytest.mark.parametrize("ending", ["mp4", "ts"])
@pytest.mark.parametrize("every", [1, 60])
def test_a_file_that_is_cut_while_it_is_read_names_the_frame(tmp_path: Path, ending: str, every: int):
    """A copy that goes on changing under the reader: what was counted is not there any more."""
    options = {"movflags": "faststart"} if ending == "mp4" else {}
    source = write_clip(tmp_path / f"a.{ending}", length=200, options=options)
    clip = open_clip(source, every=every)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"a\.{ending}: frame \d+ of 200 cannot be decoded .*cut short"):
        list(clip)


def test_a_video_that_is_not_finished_is_not_there(tmp_path: Path):
    def stop() -> None:
        with VideoWriter(tmp_path / "b.mp4", SIZE, Fraction(10)) as video:
            video.add(moving_disc(0, SIZE), 0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    with VideoWriter(tmp_path / "b.mp4", SIZE, Fraction(10)) as video, pytest.raises(ValueError, match="expected"):
        video.add(moving_disc(0, (8, 8)), 0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_no_film(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), np.uint8)

    def film() -> None:
        with VideoWriter(tmp_path / "b.mp4", SIZE, Fraction(10)) as video:
            for index, frame in enumerate(noise):
                video.add(frame, index / 10)

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(VideoWriteError, match=r"b\.mp4: cannot be written"):
            film()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_without_an_encoder_for_h264_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(video_writer, "can_encode", lambda name: name == "mpeg4")
    with VideoWriter(tmp_path / "b.mp4", SIZE, Fraction(10)) as video:
        video.add(moving_disc(0, SIZE), 0)
        assert "MPEG-4 part 2, which browsers do not play" in video.note
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    monkeypatch.undo()
    assert video_writer.can_encode("libx264")
    assert not video_writer.can_encode("no_such_encoder")


@pytest.mark.parametrize("ending", ["mp4", "avi"])
def test_frames_are_read_backward_in_blocks_and_from_the_middle(
    tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
):
    """A file that can be sought (mp4), and one that is decoded from its start."""
    codec = {"mp4": "libx264", "avi": "mpeg4"}[ending]
    clip = open_clip(write_clip(tmp_path / f"a.{ending}", length=70, size=(48, 192), codec=codec))
    whole = [frame.rgb for frame in clip]
    monkeypatch.setattr("data.clips.BACKWARD_BYTES", 3 * 48 * 192 * 7)
    for indices in (range(69, -1, -1), range(65, 51, -4), range(60, 70, 3), range(55, 56), range(0)):
        frames = list(clip.frames(indices))
        assert [int(frame.name) for frame in frames] == list(indices)
        for index, frame in zip(indices, frames, strict=True):
            assert (frame.rgb == whole[index]).all(), index
            assert frame.seconds == clip.source.seconds[index]

"""A local page: click objects or points of your own clip, play their masks or tracks; match or compare images."""

import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from data.notices import say
from dino_dense import Backbone, distributed
from dino_dense.config import command_line
from dino_dense.config.schema import path
from tasks.harness.options import RunOptions
from tasks.harness.runner import open_backbone, seed_everything
from tasks.harness.task import Command
from tasks.studio_page.keys import SCRIPT
from tasks.studio_page.page import build_page, import_gradio
from tasks.studio_page.scene import Studio

SUMMARY = (
    "Look in the browser: click objects or points in your own video, play their masks or tracks, compare networks."
)
HOST = "127.0.0.1"  # this machine only
SHIPPED = "dino_dense:micro8"
"""The checkpoint of a page without --ckpt."""


@dataclass(frozen=True)
class StudioConfig:
    """The page"""

    beside: str | None = path()
    """A second checkpoint (as for --ckpt): tab Compare shows both, side by side. --arch, --network, --heads and
    --positions are for the first alone."""
    port: int = 7860
    """Port of the page, http://127.0.0.1:PORT. No other machine can open it."""
    max_size: int = 200
    """Largest accepted file, MiB."""
    waiting: int = 8
    """Requests that may wait for the network; more are refused."""
    resolution: int = 240
    """Short side of the network's input, pixels: half of DINO's 480, four times faster."""

    def __post_init__(self) -> None:
        for name, least in (("port", 0), ("max_size", 1), ("waiting", 1), ("resolution", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: expected {least} or more")


def open_backbones(options: RunOptions, config: StudioConfig) -> list[Backbone]:
    """The checkpoint of the options (by default `SHIPPED`) and, if there is one, the second to compare with it.

    Raises:
        ValueError, OSError: a checkpoint is unusable (`load_backbone`).
    """
    device = distributed.resolve_device(options.device)
    if options.ckpt is None:
        say(f"no --ckpt: the page shows {SHIPPED}, a small network of this package")
        options = replace(options, ckpt=SHIPPED)
    backbones = [open_backbone(options, device)]
    if config.beside is not None:
        read = RunOptions()  # the options on how a file is read are of the first
        own = replace(
            options,
            ckpt=config.beside,
            arch=read.arch,
            network=read.network,
            heads=read.heads,
            positions=read.positions,
        )
        backbones.append(open_backbone(own, device))
    return backbones


@contextmanager
def open_studio(backbones: Sequence[Backbone], config: StudioConfig) -> Iterator[tuple[str, Path]]:
    """A context with the page. Yields its address, and the folder of its files, which is removed at the end.

    Raises:
        ValueError, OSError: Gradio is not installed, or the port is taken.
    """
    folder = Path(tempfile.mkdtemp(prefix="dino_dense-studio-"))
    try:
        gr = import_gradio(folder)
        page = build_page(gr, Studio(backbones, folder, config.resolution, config.max_size * 2**20))
        fonts = {
            "font": ["system-ui", "sans-serif"],
            "font_mono": ["ui-monospace", "monospace"],
        }  # no download
        _, address, _ = page.queue(max_size=config.waiting).launch(
            server_name=HOST,
            server_port=config.port or None,
            max_file_size=config.max_size * 2**20,
            allowed_paths=[str(folder)],
            head=SCRIPT,
            theme=gr.themes.Base(**fonts),
            prevent_thread_lock=True,
            ssr_mode=False,
            share=False,
            quiet=True,
            footer_links=[],
        )
        try:
            yield address, folder
        finally:
            page.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m tasks.studio`: parse, open the page, wait for Ctrl-C. Returns the exit status."""
    options, config = command_line.parse(
        RunOptions, StudioConfig, prog="python -m tasks.studio", description=SUMMARY, argv=argv
    )
    seed_everything(options.seed)
    with open_studio(open_backbones(options, config), config) as (address, _):
        print(f"{address} (Ctrl-C ends it and removes its files)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")
    return 0


COMMAND = Command(name="studio", summary=SUMMARY, main=main)

if __name__ == "__main__":
    command_line.run(main)

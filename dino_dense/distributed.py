"""torch.distributed, or one plain process: the same calls work in both.

PyTorch is imported where there are other processes or tensors: a command of one process may never need it.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Item = TypeVar("Item")


class LostProcessError(ConnectionError):
    """Another process of the run is gone. The message says how to go on."""

    exit_status = 1


_LOST = re.compile(r"gloo|NCCL|[Cc]onnection (closed|reset|refused)|Broken pipe|Socket|timed out|Timeout")
"""What torch's messages say when a peer does not answer; it has no class of error for that with gloo."""


@dataclass(frozen=True)
class World:
    """Where this process stands among its peers."""

    rank: int = 0
    """0-based, over all machines."""
    local_rank: int = 0
    """0-based, on this machine."""
    size: int = 1
    """Number of processes."""

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto" (CUDA when there is one), "cpu" or "cuda" -> this process's device.

    Raises ValueError for another name, or for "cuda" where PyTorch sees no CUDA device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device is {name!r}, expected auto, cpu or cuda")
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch sees no CUDA device: use --device cpu or auto")
    return torch.device("cuda", local_rank)


@contextmanager
def session(device: str) -> Iterator[tuple[World, torch.device]]:
    """`joined`, with this process's device.

    Raises:
        LostProcessError, ValueError: see `joined` and `resolve_device`.
    """
    with joined(device) as world:
        yield world, resolve_device(device, world.local_rank)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the other processes when started by torchrun (its WORLD_SIZE variable), else be alone.

    Both backends are opened on CUDA, so that small host-side flags travel without a device synchronisation.

    Raises:
        LostProcessError: another process ended in the middle of the work.
        ValueError: the launcher's variables are not all there.
    """
    if "WORLD_SIZE" not in os.environ:
        yield World()
        return
    if lacking := [name for name in ("RANK", "LOCAL_RANK") if name not in os.environ]:
        raise ValueError(
            f"WORLD_SIZE is set, {' and '.join(lacking)} not: expected all three, as torchrun sets them. Start it with "
            "torchrun, or unset WORLD_SIZE for one process."
        )
    world = World(int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))
    import torch
    import torch.distributed as dist

    here = resolve_device(device, world.local_rank)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    try:
        _join(world, "gloo" if here.type == "cpu" else "cpu:gloo,cuda:nccl")
        yield world
    except RuntimeError as error:
        if world.size == 1 or not _LOST.search(str(error)):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the survivors: not before they have said why
        reason = str(error).strip().splitlines()[0][:160]
        raise LostProcessError(
            f"process {world.rank} of {world.size}: another process is gone ({reason}). Its own message says why. "
            "Give the same command again (of pretraining, with --resume auto: it goes on then, and under torchrun "
            "--max-restarts N by itself)."
        ) from error
    finally:
        if is_active():
            dist.destroy_process_group()


def _join(world: World, backend: str) -> None:
    """Meet the other processes under the addresses that torchrun or the launcher has set.

    torchrun keeps one store over its restarts, and the addresses of the processes of the life before stay in it: who
    reads one calls a process that is gone. So each life has its own keys. Its number is the same in every process of
    one machine only: over several, `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` makes torchrun start a new store each time.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://"))
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world.size):
        store = PrefixStore(f"life {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def is_active() -> bool:
    """Whether there are other processes to talk to."""
    if "torch" not in sys.modules:  # without it, none was joined
        return False
    import torch.distributed as dist

    return dist.is_available() and dist.is_initialized()


def all_reduce_mean(tensor: Tensor) -> Tensor:
    """The mean of `tensor` over the processes, written into `tensor`."""
    if is_active():
        import torch.distributed as dist

        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()
    return tensor


def all_gather(tensor: Tensor) -> Tensor:
    """[N, ...] of every process (equal shapes) -> [size * N, ...], in rank order. Without gradient."""
    if not is_active():
        return tensor
    import torch
    import torch.distributed as dist

    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


def even_share(items: Sequence[Item], world: World) -> list[Item]:
    """This process's items, as many as any other's: the last processes repeat the final item.

    Rows made from them and gathered by `all_gather` are those of `items`, in order, after `[: len(items)]`.
    """
    share = -(-len(items) // world.size)
    return [items[min(index, len(items) - 1)] for index in range(world.rank * share, (world.rank + 1) * share)]


def any_true(flag: bool) -> bool:
    """Whether `flag` is set in any process: the same answer everywhere."""
    if not is_active():
        return flag
    import torch
    import torch.distributed as dist

    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def barrier() -> None:
    """Wait for every process."""
    if is_active():
        import torch.distributed as dist

        dist.barrier()


def gather_objects(items: list[Item]) -> list[Item]:
    """The items of every process, in rank order: each may have any number of them, that pickle can carry."""
    if not is_active():
        return items
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def share_of(items: Sequence[Item], world: World) -> list[tuple[int, Item]]:
    """This process's items, every size-th one, with their places."""
    return list(enumerate(items))[world.rank :: world.size]


def in_order(measured: list[tuple[int, Item]]) -> list[Item]:
    """What all processes measured, in the order of the items; each gives (place, result)."""
    return [result for _, result in sorted(gather_objects(measured), key=lambda pair: pair[0])]

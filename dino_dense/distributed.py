"""torch.distributed, with calls that also work in a single process.

PyTorch is imported only for other processes and for tensors: a command of a single process may never need it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.distributed import Store  # type: ignore[attr-defined]

Item = TypeVar("Item")

PATIENCE = 15.0
"""Seconds until a process that waits for the others says so."""
GIVE_UP = 600.0
"""Seconds until it gives up: on a cold machine, importing PyTorch may take minutes."""
_POLL_SECONDS = 0.05
VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that the launcher (torchrun) sets: all of them, or none."""
HOW_TO_LEAVE = f"For one process alone, leave the launcher's variables: env -u {' -u '.join(VARIABLES)} COMMAND."


class LostProcessError(ConnectionError):
    """Another process of the run is gone, or never came. The message says how to go on."""

    exit_status = 1


class OutOfMemoryError(OSError):
    """The memory of the device or the machine does not suffice. The message says what to lower."""

    exit_status = 1


_LOST = re.compile(
    r"[Cc]onnection (closed|reset|refused)|Broken pipe|[Tt]imed out|[Tt]imeout|[Ss]ocket|remote server|pair closure"
    r"|ncclRemoteError|remote process exiting"
)
"""Matches torch's messages about a peer that does not answer. Neither gloo nor NCCL has an error class for this."""
_NO_MEMORY = re.compile(r"not enough memory|can't allocate memory|CUDA out of memory|CUDA error: out of memory")


@dataclass(frozen=True)
class World:
    """The number of this process, and how many there are."""

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


def check_device_name(name: str) -> None:
    """Raise ValueError for a name that is not auto, cpu, cuda or cuda:N."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
        raise ValueError(f"device is {name!r}, expected auto, cpu, cuda or cuda:N (cuda:1 is the second)")


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """ "auto" (CUDA when there is one), "cpu", "cuda" or "cuda:N" -> this process's device.

    Each process of a machine takes the CUDA device of its local rank. A process that sees a single device, as under
    Slurm's `--gpus-per-task=1`, takes this device.

    Raises:
        ValueError: another name; "cuda" where PyTorch sees no CUDA device; or a number that PyTorch does not see.
    """
    check_device_name(name)
    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"device is {name}, but PyTorch sees no CUDA device: use --device cpu or auto")
    count = torch.cuda.device_count()
    number = name.partition(":")[2]
    index = int(number) if number else local_rank if count > 1 else 0
    if index >= count:
        asked = f"device is {name}" if number else f"LOCAL_RANK is {local_rank}"
        raise ValueError(
            f"{asked}, but PyTorch sees {count} CUDA device(s), cuda:0 to cuda:{count - 1}: name one of them, start at "
            "most as many processes as devices, or correct CUDA_VISIBLE_DEVICES."
        )
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32: by default cuDNN rounds its inputs to 10 bits
    return torch.device("cuda", index)


@contextmanager
def session(device: str) -> Iterator[tuple[World, torch.device]]:
    """`process_group`, with this process's device.

    Raises:
        LostProcessError, ValueError: see `process_group` and `resolve_device`.
    """
    with process_group(device) as world:
        yield world, resolve_device(device, world.local_rank)


@contextmanager
def process_group(device: str) -> Iterator[World]:
    """Join the other processes if torchrun started this one (its variable WORLD_SIZE); a single process otherwise.

    On CUDA, gloo is opened beside NCCL, so that small flags of the host travel without a device synchronization.

    Raises:
        LostProcessError: another process ended in the middle of the work, or never came.
        OutOfMemoryError: the memory of the device or the machine does not suffice.
        ValueError: a variable of the launcher is missing or no number; or the device cannot be used.
    """
    world = world_of(os.environ)
    if world.size == 1:
        with memory_explained():
            yield world
        return
    here = _device_among_others(device, world)
    failed = True
    try:
        _join(world, here)
        with memory_explained():
            yield world
        failed = False
    except RuntimeError as error:
        if not _LOST.search(str(error)):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends the survivors; the message comes first
        reason = str(error).strip().splitlines()[0][:160]
        raise LostProcessError(
            f"process {world.rank} of {world.size}: another process is gone ({reason}). Its own message says why. "
            "Give the same command again (of pretraining, with --resume auto: it goes on then, and under torchrun "
            "--max-restarts N by itself)."
        ) from error
    finally:
        # After a failure NCCL may wait here for a peer without end, and the message would not be printed.
        if is_active() and not (failed and here.type == "cuda"):
            import torch.distributed as dist

            dist.destroy_process_group()


def world_of(variables: Mapping[str, str]) -> World:
    """Rank and size from the launcher's variables; a single process without them, or if WORLD_SIZE is 1.

    Raises:
        ValueError: a variable is missing, is no number, or does not fit the others; the message names it.
    """
    if not variables.get("WORLD_SIZE"):
        return World()
    size = _number(variables, "WORLD_SIZE", 1)
    if size == 1:
        return World()
    if lacking := [name for name in VARIABLES if not variables.get(name)]:
        raise ValueError(
            f"WORLD_SIZE is {size}, but {' and '.join(lacking)} {'is' if len(lacking) == 1 else 'are'} not set: "
            f"expected all of {', '.join(VARIABLES)}, as torchrun sets them. Start with torchrun. {HOW_TO_LEAVE}"
        )
    _number(variables, "MASTER_PORT", 0, 65_535)
    return World(_number(variables, "RANK", 0, size - 1), _number(variables, "LOCAL_RANK", 0, size - 1), size)


def _number(variables: Mapping[str, str], name: str, least: int, most: int | None = None) -> int:
    text = variables[name].strip()
    if text.isdecimal() and int(text) >= least and (most is None or int(text) <= most):
        return int(text)
    expected = f"a number of at least {least}" if most is None else f"a number from {least} to {most}"
    raise ValueError(f"the variable {name} is {variables[name]!r}, expected {expected}. {HOW_TO_LEAVE}")


@contextmanager
def memory_explained() -> Iterator[None]:
    """Turn an out-of-memory error of the block into a short message.

    Raises:
        OutOfMemoryError: the message says which options to lower.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if not is_memory and not _NO_MEMORY.search(str(error)):
            raise
        reason = (str(error).strip().splitlines() or ["no memory"])[0][:200]
        raise OutOfMemoryError(
            f"out of memory ({reason}). Lower --batch-size (pretraining keeps its batch with --accumulate 2 or 4, a "
            "part at a time), lower --max-memory or the image size, or take --dtype bf16. See that no other program "
            "has the memory."
        ) from error


def _device_among_others(name: str, world: World) -> torch.device:
    """This process's device, made the current one."""
    import torch

    if name.startswith("cuda:"):
        raise ValueError(
            f"device is {name}, but WORLD_SIZE says {world.size} processes, each of which takes its own: give --device "
            f"cuda, and choose devices with CUDA_VISIBLE_DEVICES. {HOW_TO_LEAVE}"
        )
    here = resolve_device(name, world.local_rank)
    if here.type == "cuda":
        torch.cuda.set_device(here)
    return here


def _join(world: World, here: torch.device) -> None:
    """Meet the other processes at the addresses that torchrun or the launcher has set."""
    import torch.distributed as dist

    missing = [rank for rank in range(world.size) if rank != world.rank]
    with _waiting_notices(world, missing):
        store = _open_store(world)
        _meet(store, world, here, missing)
        backend = "gloo" if here.type == "cpu" else "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size)


def _open_store(world: World) -> Store:
    """The store that all processes share: torchrun's own, or process 0's at the launcher's address.

    torchrun reuses its store after a restart, so stale addresses remain: keys carry the restart count. The count is
    equal in all processes of one machine only. Over several machines, `TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1` makes
    torchrun start a new store each time.

    Raises:
        LostProcessError: process 0 did not come.
        ValueError: another program has its port.
    """
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store, _, _ = next(rendezvous("env://"))
    else:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        limit = timedelta(seconds=GIVE_UP)
        try:
            store = dist.TCPStore(  # type: ignore[attr-defined]
                address, port, world.size, world.rank == 0, limit, wait_for_workers=False
            )
        except RuntimeError as error:
            if world.rank:
                raise LostProcessError(_never_came(world, [0])) from error
            if "EADDRINUSE" not in str(error):
                raise
            raise ValueError(
                f"port {port} of this machine (MASTER_PORT) is taken, perhaps by another run: choose another, or start "
                f"with torchrun --standalone. {HOW_TO_LEAVE}"
            ) from error
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world.size):
        return PrefixStore(f"life {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    return store


def _meet(store: Store, world: World, here: torch.device, missing: list[int]) -> None:
    """Wait until every process has come. Ranks leave `missing` as they come.

    Raises:
        LostProcessError: some did not come.
        ValueError: two processes took one CUDA device, with which NCCL does not work.
    """
    store.set(f"device of {world.rank}", _identity(here))
    until = time.monotonic() + GIVE_UP
    while missing := _absent(store, missing):
        if time.monotonic() > until:
            raise LostProcessError(_never_came(world, missing))
        time.sleep(_POLL_SECONDS)
    taken: dict[str, int] = {}
    for rank in range(world.size):
        device = store.get(f"device of {rank}").decode()
        if device != "cpu" and device in taken:
            raise ValueError(
                f"processes {taken[device]} and {rank} have one CUDA device between them: start at most as many "
                "processes as devices, and let each see its own or all of them (CUDA_VISIBLE_DEVICES)."
            )
        taken[device] = rank


def _absent(store: Store, missing: list[int]) -> list[int]:
    """`missing`, without the processes that have come since."""
    missing[:] = [rank for rank in missing if not store.check([f"device of {rank}"])]
    return missing


def _identity(device: torch.device) -> str:
    """A name that no other CUDA device of any machine has, or `cpu`."""
    if device.type == "cpu":
        return "cpu"
    import torch

    return f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"


def _never_came(world: World, missing: Sequence[int]) -> str:
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    return (
        f"process {world.rank} of {world.size}: {_rank_list(missing)} did not come to {address} in {GIVE_UP:.0f} s. "
        f"See its own message, and that every process has the same MASTER_ADDR and MASTER_PORT. {HOW_TO_LEAVE}"
    )


def _rank_list(ranks: Sequence[int]) -> str:
    names = ", ".join(map(str, ranks[:8])) + (", ..." if len(ranks) > 8 else "")
    return f"process {names}" if len(ranks) == 1 else f"processes {names}"


@contextmanager
def _waiting_notices(world: World, missing: Sequence[int]) -> Iterator[None]:
    """Print a line on standard error if the block takes more than PATIENCE seconds, and every minute after."""
    address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    begun, ended = time.monotonic(), threading.Event()

    def say() -> None:
        patience = PATIENCE
        while not ended.wait(patience):
            patience = 60.0
            whom = _rank_list(missing) if missing else "an answer of the others"
            print(
                f"process {world.rank} of {world.size} has waited {time.monotonic() - begun:.0f} s at {address} for "
                f"{whom}: WORLD_SIZE says that there are {world.size} processes. {HOW_TO_LEAVE}",
                file=sys.stderr,
                flush=True,
            )

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def is_active() -> bool:
    """Whether there are other processes to talk to."""
    if "torch" not in sys.modules:  # no process was joined without torch
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


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over the processes, written into `tensor`."""
    if is_active():
        import torch.distributed as dist

        dist.all_reduce(tensor)
    return tensor


def copy_from_main(module: nn.Module) -> None:
    """Overwrite the weights and buffers of `module` with the main process's: all processes then have the same.

    Processes that train a layer alike on the same batches differ in the last bits on CUDA, where sums have no fixed
    order.
    """
    if is_active():
        import torch.distributed as dist

        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def rank() -> int:
    """This process's number among all of them; 0 without others."""
    if not is_active():
        return 0
    import torch.distributed as dist

    return dist.get_rank()


def all_gather_with_gradient(tensor: Tensor) -> Tensor:
    """`all_gather` with gradient: a row's gradient, summed over the processes, returns to the process of the row."""
    if not is_active():
        return tensor
    import torch
    from torch.distributed.nn.functional import all_gather as gather

    return torch.cat(gather(tensor.contiguous()))


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
    """This process's items. Every process gets the same number: the last processes repeat the final item.

    `all_gather` of a row for each item, cut by `[: len(items)]`, gives the rows of `items` in order.
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
    """The items of every process, in rank order. A process may have any number of items that pickle can carry."""
    if not is_active():
        return items
    import torch.distributed as dist

    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part]


def share_of(items: Sequence[Item], world: World) -> list[tuple[int, Item]]:
    """This process's items with their indices: every `size`-th item, from its rank on."""
    return list(enumerate(items))[world.rank :: world.size]


def in_order(measured: list[tuple[int, Item]]) -> list[Item]:
    """The results of all processes in the order of the items, from this process's (index, result) pairs."""
    return [result for _, result in sorted(gather_objects(measured), key=lambda pair: pair[0])]

"""The short form of `make faults` for several processes."""

import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from dino_dense.distributed import (
    VARIABLES,
    LostProcessError,
    OutOfMemoryError,
    World,
    resolve_device,
    session,
    world_of,
)
from tests.faults.processes import restarts, the_others_stop


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others_which_say_so(tmp_path: Path):
    the_others_stop(tmp_path)


@pytest.mark.slow
def test_torchrun_restarts_after_a_death_and_the_run_goes_on(tmp_path: Path):
    assert restarts(tmp_path)["step"].tolist() == list(range(1, 11))


@pytest.fixture
def one_of_two(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as number 1 of 2, the other never seen."""
    for name, value in zip(VARIABLES, ("2", "1", "1", "127.0.0.1", "29399"), strict=True):
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[dist.Store]:
    """Process 0 has come: the stores under which the group is opened, which nobody opens."""
    kept, stores = dist.HashStore(), []
    for life in ("", "life 0/", "life 1/"):
        kept.set(f"{life}device of 0", "cpu")
    monkeypatch.setattr("torch.distributed.TCPStore", lambda *_, **__: kept)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, store, **__: stores.append(store))
    return stores


LOST = [
    "[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234",
    "[gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 1800000ms for recv operation to complete",
    "NCCL error in: NCCLUtils.cpp, remote process exited or there was a network error, ncclRemoteError: A call failed",
]
NOT_LOST = [
    "shapes do not fit",
    "NCCL error in: ProcessGroupNCCL.cpp, invalid usage, Duplicate GPU detected",
    "[enforce fail at gloo/allreduce.cc:32] opts.elements > 0",
]


@pytest.mark.parametrize("said", LOST)
def test_a_lost_peer_is_said_plainly(said: str, one_of_two: None, met: list[dist.Store]):
    message = r"process 1 of 2: another process is gone.*--resume auto"
    with pytest.raises(LostProcessError, match=message), session("cpu"):
        raise RuntimeError(said)


@pytest.mark.parametrize("said", NOT_LOST)
def test_an_error_of_use_is_no_lost_peer(said: str, one_of_two: None, met: list[dist.Store]):
    with pytest.raises(RuntimeError, match=re.escape(said)), session("cpu"):
        raise RuntimeError(said)


def test_without_another_process_none_is_lost(one_of_two: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(RuntimeError, match=r"^Timeout$"), session("cpu"):
        raise RuntimeError("Timeout")


def test_a_peer_that_is_gone_before_they_met_is_said_too(
    one_of_two: None, met: list[dist.Store], monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with timed out connecting: Connection refused")

    monkeypatch.setattr("torch.distributed.init_process_group", refused)
    with pytest.raises(LostProcessError, match="another process is gone"), session("cpu"):
        pass


def test_a_life_after_a_restart_does_not_read_the_addresses_of_the_one_before(
    one_of_two: None, met: list[dist.Store], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for life in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", life)
        with session("cpu"):
            pass
    met[0].set("address", "of a process that will die")
    assert met[0].check(["address"])
    assert not met[1].check(["address"])


# --- The launcher's variables ------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_says_for_whom_it_waits_and_how_to_work_alone(
    rank: int, one_of_two: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr("dino_dense.distributed.PATIENCE", 0.2)
    monkeypatch.setattr("dino_dense.distributed.GIVE_UP", 2.0)
    never = rf"process {rank} of 2: process {1 - rank} did not come to 127.0.0.1:\d+ in 2 s.*env -u WORLD_SIZE"
    with pytest.raises(LostProcessError, match=never), session("cpu"):
        pass
    said = capfd.readouterr().err
    assert re.search(rf"process {rank} of 2 has waited \d+ s at 127.0.0.1:\d+ for process {1 - rank}: WORLD_SIZE", said)
    assert "env -u WORLD_SIZE -u RANK -u LOCAL_RANK -u MASTER_ADDR -u MASTER_PORT COMMAND" in said


def test_one_process_needs_no_address(monkeypatch: pytest.MonkeyPatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "1")
    with session("cpu") as (world, _):
        assert world == World()
        assert not dist.is_initialized()


ALL = dict(zip(VARIABLES, ("2", "1", "1", "127.0.0.1", "29399"), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"WORLD_SIZE": "auto"}, r"variable WORLD_SIZE is 'auto', expected a number of at least 1\..*env -u"),
        ({"WORLD_SIZE": "0"}, "variable WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "-2"}, "variable WORLD_SIZE is '-2'"),
        ({"RANK": "2"}, "variable RANK is '2', expected a number from 0 to 1"),
        ({"LOCAL_RANK": "x"}, "variable LOCAL_RANK is 'x'"),
        ({"MASTER_PORT": "http"}, "variable MASTER_PORT is 'http', expected a number from 0 to 65535"),
        ({"RANK": None}, r"WORLD_SIZE is 2, but RANK is not set: .*torchrun.*env -u WORLD_SIZE"),
        ({"MASTER_ADDR": None, "MASTER_PORT": ""}, "but MASTER_ADDR and MASTER_PORT are not set"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(changes: dict[str, str | None], message: str):
    variables = {name: value for name, value in (ALL | changes).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        world_of(variables)
    assert world_of(ALL) == World(1, 1, 2)


def test_a_port_that_another_run_has_is_named(one_of_two: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(ValueError, match=rf"port {port} .*MASTER_PORT.* is taken.*--standalone"), session("cpu"):
            pass


# --- Devices and memory ------------------------------------------------------------------------------------


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let PyTorch see as many CUDA devices."""

    def see(count: int) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: count > 0)
        monkeypatch.setattr("torch.cuda.device_count", lambda: count)
        monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
        properties = {index: SimpleNamespace(uuid=f"gpu {index}") for index in range(count)}
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties[device.index])

    return see


@pytest.mark.parametrize(
    ("name", "count", "local_rank", "expected"),
    [
        ("auto", 0, 3, "cpu"),
        ("auto", 4, 3, "cuda:3"),
        ("cuda", 1, 3, "cuda:0"),  # srun --gpus-per-task=1
        ("cuda:1", 2, 0, "cuda:1"),
        ("cpu", 2, 1, "cpu"),
    ],
)
def test_each_process_takes_its_device(
    name: str,
    count: int,
    local_rank: int,
    expected: str,
    devices: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
):
    devices(count)
    monkeypatch.setattr("torch.backends.cudnn.allow_tf32", True)
    assert resolve_device(name, local_rank) == torch.device(expected)
    assert torch.backends.cudnn.allow_tf32 == (expected == "cpu"), "fp32 is fp32 on CUDA"


@pytest.mark.parametrize(
    ("name", "count", "local_rank", "message"),
    [
        ("cuda", 0, 0, "sees no CUDA device"),
        ("cuda:1", 0, 0, "sees no CUDA device"),
        ("cuda:2", 2, 0, r"device is cuda:2, but PyTorch sees 2 CUDA device\(s\), cuda:0 to cuda:1"),
        ("cuda", 2, 2, r"LOCAL_RANK is 2, but PyTorch sees 2 .*at most as many processes as devices"),
        ("cuda:x", 2, 0, "expected auto, cpu, cuda or cuda:N"),
        ("cuda:", 2, 0, "expected auto, cpu, cuda or cuda:N"),
        ("cpu:0", 2, 0, "expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_refused(
    name: str, count: int, local_rank: int, message: str, devices: Callable[[int], None]
):
    devices(count)
    with pytest.raises(ValueError, match=message):
        resolve_device(name, local_rank)


def test_two_processes_on_one_device_are_refused_before_nccl(
    one_of_two: None, met: list[dist.Store], devices: Callable[[int], None]
):
    devices(1)
    dist.TCPStore().set("device of 0", f"{socket.gethostname()} gpu 0")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="processes 0 and 1 have one CUDA device between them"), session("cuda"):
        pass
    assert not met


def test_one_device_by_number_is_for_one_process(one_of_two: None, devices: Callable[[int], None]):
    devices(2)
    with pytest.raises(ValueError, match=r"WORLD_SIZE says 2 processes.*give --device cuda"), session("cuda:1"):
        pass


def test_after_a_failure_on_cuda_the_group_is_left_as_it_is(
    one_of_two: None, met: list[dist.Store], devices: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
):
    """NCCL may wait there for a peer that is gone, and nobody would read the message."""
    devices(2)
    ended: list[str] = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: ended.append("group"))
    with pytest.raises(LostProcessError), session("cuda"):
        raise RuntimeError(LOST[0])
    assert not ended
    with session("cuda"):
        pass
    assert ended == ["group"]


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to"),
    MemoryError("Unable to allocate 8.00 EiB for an array"),
]


@pytest.mark.parametrize("error", NO_MEMORY)
def test_memory_that_runs_out_is_one_paragraph(error: Exception):
    message = r"^out of memory \(.*llocate.*Lower --batch-size .*--accumulate"
    with pytest.raises(OutOfMemoryError, match=message), session("cpu"):
        raise error


def test_memory_that_runs_out_in_truth():
    with pytest.raises(OutOfMemoryError), session("cpu"):
        torch.empty(2**60)

"""The short form of `make faults` for several processes."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from dino_dense.distributed import LostProcessError, session
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
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("said", ["[gloo/transport/tcp/pair.cc:534] Connection closed by peer", "NCCL error"])
def test_a_lost_peer_is_said_plainly(said: str, one_of_two: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dino_dense.distributed._join", lambda world, backend: None)
    with (
        pytest.raises(LostProcessError, match=r"process 1 of 2: another process is gone.*--resume auto"),
        session("cpu"),
    ):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), session("cpu"):
        raise RuntimeError("shapes do not fit")


def test_without_another_process_none_is_lost(one_of_two: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr("dino_dense.distributed._join", lambda world, backend: None)
    with pytest.raises(RuntimeError, match=r"^Timeout$"), session("cpu"):
        raise RuntimeError("Timeout")
    monkeypatch.delenv("RANK")
    with pytest.raises(ValueError, match=r"WORLD_SIZE is set, RANK not.*torchrun"), session("cpu"):
        pass


def test_a_peer_that_is_gone_before_they_met_is_said_too(one_of_two: None, monkeypatch: pytest.MonkeyPatch):
    def refused(*_: object, **__: object) -> None:
        raise RuntimeError("Gloo connectFullMesh failed with timed out connecting: Connection refused")

    monkeypatch.setattr("dino_dense.distributed.rendezvous", refused)
    with pytest.raises(LostProcessError, match="another process is gone"), session("cpu"):
        pass


def test_a_life_after_a_restart_does_not_read_the_addresses_of_the_one_before(
    one_of_two: None, monkeypatch: pytest.MonkeyPatch
):
    kept, stores = dist.HashStore(), []
    monkeypatch.setattr("dino_dense.distributed.rendezvous", lambda _: iter([(kept, 1, 2)]))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *_, store, **__: stores.append(store))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for life in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", life)
        with session("cpu"):
            pass
    stores[0].set("address", "of a process that will die")
    assert stores[0].check(["address"])
    assert not stores[1].check(["address"])

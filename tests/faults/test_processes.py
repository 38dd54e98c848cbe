"""The short form of `make faults` for several processes."""

from pathlib import Path

import pytest

from dino_dense.distributed import LostProcessError, session
from tests.faults.processes import a_process_dies


@pytest.mark.slow
def test_a_process_that_dies_stops_the_others_and_a_restart_goes_on(tmp_path: Path):
    a_process_dies(tmp_path)


@pytest.mark.parametrize("said", ["[gloo/transport/tcp/pair.cc:534] Connection closed by peer", "NCCL error"])
def test_a_lost_peer_is_said_plainly(said: str, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend: None)
    monkeypatch.setattr("torch.distributed.destroy_process_group", lambda: None)
    with (
        pytest.raises(LostProcessError, match=r"process 1 of 2: another process is gone.*--resume auto"),
        session("cpu"),
    ):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes"), session("cpu"):
        raise RuntimeError("shapes do not fit")

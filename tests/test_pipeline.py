"""Work beside the main thread: in order, bounded, and no error lost."""

import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dino_dense.pipeline import BackgroundCalls, batches_by_key, computed_ahead, in_batches, read_ahead


@pytest.mark.parametrize("ahead", [1, 3, 100])
@pytest.mark.parametrize("workers", [1, 4])
def test_reads_come_in_order_and_no_further_ahead_than_asked(ahead: int, workers: int):
    begun: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            begun.append(item)
            yield item

    for taken, result in enumerate(read_ahead(lambda item: item**2, items(), ahead=ahead, workers=workers)):
        assert result == taken**2
        assert len(begun) <= taken + 1 + ahead
    assert len(begun) == 20


def test_a_failed_read_is_raised_in_its_place():
    def read(item: int) -> int:
        if item == 3:
            raise ValueError("frame 3")
        return item

    results = read_ahead(read, range(10), ahead=5, workers=2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="frame 3"):
        next(results)


def test_leaving_early_ends_the_threads():
    before = threading.active_count()
    results = read_ahead(lambda item: item, range(1000), ahead=4)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_the_with_waits_for_all_and_the_backlog_is_bounded():
    gate, done = threading.Event(), []

    def work(item: int) -> None:
        gate.wait()
        done.append(item)

    with BackgroundCalls(workers=2, backlog=3) as behind:
        for item in range(3):
            behind.submit(work, item)
        fourth = threading.Thread(target=behind.submit, args=(work, 3))
        fourth.start()
        fourth.join(timeout=0.2)
        assert fourth.is_alive()  # waits for a place
        gate.set()
        fourth.join()
    assert sorted(done) == [0, 1, 2, 3]


def fail() -> None:
    raise OSError("disk full")


def test_the_first_error_is_raised_at_the_end():
    with pytest.raises(OSError, match="disk full"), BackgroundCalls(workers=1, backlog=2) as behind:
        behind.submit(fail)


def test_an_error_stops_the_work_before_the_end():
    submitted: list[int] = []

    def go_on(behind: BackgroundCalls) -> None:
        for item in range(100):
            behind.submit(fail)
            submitted.append(item)

    with pytest.raises(OSError, match="disk full"), BackgroundCalls(workers=1, backlog=1) as behind:
        go_on(behind)
    assert len(submitted) < 5


def test_an_error_of_the_main_thread_is_not_replaced():
    def both_fail(behind: BackgroundCalls) -> None:
        behind.submit(fail)
        raise KeyError("mine")

    with pytest.raises(KeyError), BackgroundCalls(workers=1, backlog=2) as behind:
        both_fail(behind)


@pytest.mark.parametrize(
    ("size", "batches"), [(1, ["a", "a", "a", "b", "a"]), (2, ["aa", "a", "b", "a"]), (9, ["aaa", "b", "a"])]
)
def test_batches_are_runs_of_one_key(size: int, batches: list[str]):
    assert ["".join(batch) for batch in in_batches("aaaba", str, size)] == batches
    assert list(in_batches("", str, size)) == []


@given(keys=st.text("abc", max_size=40), size=st.integers(1, 5), most=st.integers(1, 9))
def test_gathered_batches_hold_every_item_once_and_few_wait(keys: str, size: int, most: int):
    items = list(enumerate(keys))
    asked = 0

    def ask() -> Iterator[tuple[int, str]]:
        nonlocal asked
        for item in items:
            asked += 1
            assert asked - len(given_back) <= most
            yield item

    given_back: list[tuple[int, str]] = []
    for batch in batches_by_key(ask(), lambda item: item[1], size, most):
        assert len({key for _, key in batch}) == 1
        assert len(batch) <= size
        given_back += batch
    assert sorted(given_back) == items


def test_gathered_batches_fill_across_other_keys():
    assert ["".join(batch) for batch in batches_by_key("abababc", str, 3, 99)] == ["aaa", "bbb", "c"]


@pytest.fixture
def four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_items_are_computed_at_once_each_in_its_share_of_the_threads(four_threads: None):
    """All four must be running before any may end, so they are computed at once."""
    together = threading.Barrier(4, timeout=20)

    def compute(item: int) -> tuple[int, int, int]:
        together.wait()
        return item, torch.get_num_threads(), threading.get_ident()

    computed = computed_ahead(compute, range(8), on_cpu=True)
    first = next(computed)
    assert torch.get_num_threads() == 1
    items, threads, workers = zip(first, *computed, strict=True)
    assert items == tuple(range(8))
    assert set(threads) == {1}
    assert len(set(workers)) == 4
    assert torch.get_num_threads() == 4


def test_threads_return_after_an_error_and_after_an_early_end(four_threads: None):
    def compute(item: int) -> int:
        if item == 2:
            raise ValueError("frame 2")
        return item

    computed = computed_ahead(compute, range(8), on_cpu=True)
    assert [next(computed), next(computed)] == [0, 1]
    with pytest.raises(ValueError, match="frame 2"):
        next(computed)
    assert torch.get_num_threads() == 4
    computed = computed_ahead(compute, range(2), on_cpu=True)
    assert next(computed) == 0
    computed.close()
    assert torch.get_num_threads() == 4


def test_a_gpu_gets_the_next_item_while_the_caller_uses_the_last(four_threads: None):
    begun: list[int] = []
    next_begun = [threading.Event() for _ in range(5)]

    def compute(item: int) -> tuple[int, int]:
        begun.append(item)
        next_begun[item].set()
        return item, threading.get_ident()

    computed = computed_ahead(compute, range(5), on_cpu=False)
    workers = set()
    for expected in range(4):
        item, worker = next(computed)
        workers.add(worker)
        assert item == expected
        assert next_begun[item + 1].wait(30), "nothing is computed while the caller has an item"
        assert len(begun) == expected + 2, "one item ahead, since each takes memory of the device"
    assert next(computed)[0] == 4
    assert len(workers) == 1
    assert workers != {threading.get_ident()}
    assert torch.get_num_threads() == 4


def test_an_error_of_a_gpu_comes_in_the_order_of_its_item():
    computed = computed_ahead(lambda item: 1 // (2 - item), range(4), on_cpu=False)
    assert next(computed) == 0
    assert next(computed) == 1
    with pytest.raises(ZeroDivisionError):
        next(computed)

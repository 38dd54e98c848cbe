"""Work beside the main thread: in order, bounded, and no error lost."""

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino_dense.pipeline import BackgroundCalls, batches_by_key, in_batches, read_ahead


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

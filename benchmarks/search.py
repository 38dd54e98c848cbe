"""Exact k nearest neighbors in bounded memory, against the bare products and top-k calls on the same blocks.

Features are random unit vectors with the 384 dimensions of a ViT-S. The second row has ImageNet's sizes.
"""

import time

import torch
from torch import Tensor

from benchmarks.bench import Row, device, in_new_process, in_turn, publish, synchronise
from dino_dense.neighbors.exact import BLOCK_ROWS, BYTES_PER_PAIR, SEARCH_BYTES, nearest

K = 20  # DINO's headline
DIM = 384
QUERIES, DATABASE = 10_000, 100_000
IMAGENET_QUERIES, IMAGENET = 50_000, 1_281_167  # val and train
SHARE = 10  # one of this many ImageNet queries is run
MACHINE_MIB = 24 * 1024
MAY_TAKE = 1.3  # largest time, relative to the bare calls
CHECKED = 25  # queries


def features(count: int, seed: int) -> Tensor:
    """[count, DIM]."""
    drawn = torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))
    return drawn.div_(drawn.norm(dim=1, keepdim=True))


def bare(queries: Tensor, database: Tensor, k: int) -> None:
    """The calls that any search needs, without merging their results."""
    for block in database.split(BLOCK_ROWS):
        for part in queries.split(SEARCH_BYTES // (BYTES_PER_PAIR * BLOCK_ROWS)):
            (part @ block.T).topk(k, dim=1)


def main() -> list[Row]:
    rows = [_time(), _memory()]
    publish(rows)
    return rows


def _time() -> Row:
    queries, database = (features(count, seed).to(device()) for seed, count in enumerate((QUERIES, DATABASE)))
    neighbors = nearest(queries[:CHECKED], database, K)
    expected = (queries[:CHECKED] @ database.T).topk(K, dim=1)
    difference = float((neighbors.values - expected.values).abs().max())
    # The order of sums differs with the block, so two similarities equal to the last bit may swap.
    same = float((neighbors.indices == expected.indices).double().mean())
    if difference > 1e-6 or same < 0.99:
        raise AssertionError(f"similarities differ by {difference}, and {same:.2%} of the neighbors are the same")
    plain_s, ours_s = in_turn(
        lambda: bare(queries, database, K), lambda: nearest(queries, database, K), repeats=2, warm_up=False
    )
    return Row(
        "search",
        f"{K} nearest of {DATABASE:,} x {DIM} for {QUERIES:,} queries, {device().type}",
        plain_s,
        ours_s,
        "s",
        target=1 / MAY_TAKE,
        check=f"{same:.2%} the same, similarities within {difference:.0e} of the whole product",
        note="plain is the bare products and top-k calls on the same blocks",
    )


def _memory() -> Row:
    queries = IMAGENET_QUERIES // SHARE
    measured = in_new_process(_imagenet, queries)
    if measured.mib > MACHINE_MIB:
        raise AssertionError(f"{measured.mib:.0f} MiB: expected at most {MACHINE_MIB}")
    seconds, same = measured.result
    return Row(
        "search",
        f"peak memory, {K} nearest of {IMAGENET:,} x {DIM} for {queries:,} queries, {device().type} (plain computed)",
        4 * queries * IMAGENET / 2**20,
        measured.mib,
        "MiB",
        check=f"{same:.2%} of {CHECKED} queries' neighbors the same as from the whole product",
        note="plain was not run: its matrix of similarities alone. Ours holds the features, "
        f"{4 * IMAGENET * DIM / 2**20:.0f} MiB. It took {seconds:.0f} s; all {IMAGENET_QUERIES:,} queries take "
        f"{seconds * SHARE:.0f} s (extrapolated) and "
        f"{12 * K * (IMAGENET_QUERIES - queries) / 2**20:.0f} MiB more for what is found",
    )


def _imagenet(count: int) -> tuple[float, float]:
    """Seconds of the search, and the share of its neighbors that are also neighbors in the whole product."""
    queries, database = features(count, 0).to(device()), features(IMAGENET, 1).to(device())
    start = time.perf_counter()
    neighbors = nearest(queries, database, K)
    synchronise()
    seconds = time.perf_counter() - start
    expected = (queries[:CHECKED] @ database.T).topk(K, dim=1)
    return seconds, float((neighbors.indices[:CHECKED] == expected.indices).double().mean())


if __name__ == "__main__":
    main()

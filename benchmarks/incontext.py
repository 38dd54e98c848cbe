"""The search of in-context segmentation, beside faiss's IndexFlatIP: a memory of a million patches of ViT-S.

Needs `pip install "dino_dense[benchmarks]"` (faiss). The last row extrapolates to the published memory of 10.24 million
patches and the patches of VOC val.
"""

import importlib.util
import sys
import time

import torch

from benchmarks.bench import Row, device, in_new_process, publish
from benchmarks.search import DIM, features
from dino_dense.neighbors.exact import nearest

K = 30  # Hummingbird
MEMORY, QUERIES = 1_000_000, 20_000
PUBLISHED_MEMORY, PUBLISHED_QUERIES = 10_240_000, 1_449 * 36 * 36
MAY_TAKE = 1.2  # largest time, relative to faiss
MAY_HOLD = 512  # MiB above the features
DATA_MIB = 4 * (MEMORY + QUERIES) * DIM / 2**20


def main() -> list[Row]:
    if importlib.util.find_spec("faiss") is None:
        print('incontext: faiss is not installed; pip install "dino_dense[benchmarks]"', file=sys.stderr)
        return []
    plain, ours = in_new_process(by_faiss), in_new_process(by_ours)
    (plain_s, expected), (ours_s, rows) = plain.result, ours.result
    same = float((expected.sort(1).values == rows.sort(1).values).all(1).double().mean())
    shares = (PUBLISHED_MEMORY / MEMORY) * (PUBLISHED_QUERIES / QUERIES)
    work = f"{K} nearest of {MEMORY:,} x {DIM} for {QUERIES:,} queries, {device().type} (faiss: cpu)"
    table = [
        Row(
            "incontext",
            work,
            plain_s,
            ours_s,
            "s",
            target=1 / MAY_TAKE,
            check=f"{same:.2%} of the queries have the same neighbors",
            agrees=same > 0.999,
            note=f"plain is faiss IndexFlatIP; {PUBLISHED_MEMORY:,} patches and the {PUBLISHED_QUERIES:,} of VOC val "
            f"take {ours_s * shares / 3600:.1f} h (extrapolated) and hold {4 * PUBLISHED_MEMORY * DIM / 2**30:.1f} GiB",
        ),
        Row(
            "incontext",
            f"peak memory above the features, {work}",
            plain.mib - DATA_MIB,
            ours.mib - DATA_MIB,
            "MiB",
            limit=MAY_HOLD,
            note="faiss holds a copy of the memory",
        ),
    ]
    publish(table)
    return table


def by_faiss() -> tuple[float, torch.Tensor]:
    """Seconds of the search, and the rows found [QUERIES, K]."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    memory, queries = features(MEMORY, 1).numpy(), features(QUERIES, 0).numpy()
    index = faiss.IndexFlatIP(DIM)
    index.add(memory)
    start = time.perf_counter()
    rows = index.search(queries, K)[1]
    return time.perf_counter() - start, torch.from_numpy(rows)


def by_ours() -> tuple[float, torch.Tensor]:
    """Seconds of the search, and the rows found [QUERIES, K]."""
    memory, queries = features(MEMORY, 1).to(device()), features(QUERIES, 0).to(device())
    start = time.perf_counter()
    rows = nearest(queries, memory, K).indices.cpu()
    return time.perf_counter() - start, rows


if __name__ == "__main__":
    main()

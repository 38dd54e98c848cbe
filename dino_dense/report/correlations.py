"""Whether measures rank checkpoints alike: Spearman's correlation of their headline metrics."""

from collections.abc import Sequence

import pandas as pd

from dino_dense.report.cells import headlines, mixed_data
from dino_dense.report.table import Entry, checkpoints

LEAST = 3
"""Checkpoints that two measures must share; of two, the correlation is always 1 or -1."""


def rank_correlations(entries: Sequence[Entry]) -> pd.DataFrame:
    """Spearman's rank correlation of each two entries of a suite, over the checkpoints that both have measured.

    A metric that is better when lower is negated, so that 1 says that both prefer the same checkpoints. Equal numbers
    share their mean rank. Entries whose data differ among checkpoints are left out.

    Returns:
        Columns first, second (labels), rho (-1 to 1) and n (checkpoints). No row for two entries with fewer than
        `LEAST` checkpoints in common, or with one number for all of them.

    Raises:
        ValueError: the entries do not form a table (`table.check_entries`).
    """
    columns = [column for column in headlines(entries) if not mixed_data(entries, column.label)]
    signed = {
        column.label: [
            None if cell.value is None else cell.value if column.metric.higher_is_better else -cell.value
            for cell in column.cells
        ]
        for column in columns
    }
    table = pd.DataFrame(signed, index=checkpoints(entries), dtype=float)
    rows = []
    for position, second in enumerate(table.columns):
        for first in table.columns[:position]:
            both = table[[first, second]].dropna().rank()
            if len(both) >= LEAST and (both.nunique() > 1).all():
                rho = float(both[first].corr(both[second]))
                rows.append({"first": first, "second": second, "rho": rho, "n": len(both)})
    return pd.DataFrame(rows, columns=["first", "second", "rho", "n"])

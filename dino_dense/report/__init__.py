"""Results as typed records, and the tables, files, pages and comparisons of results."""

from typing import TYPE_CHECKING

from dino_dense.lazy import lazy_names

if TYPE_CHECKING:
    from dino_dense.report.browser import open_page
    from dino_dense.report.compare import compare_all
    from dino_dense.report.curves import read_curves
    from dino_dense.report.files import write_batch, write_comparison
    from dino_dense.report.folders import PAIRS_FILE, REPORT_FILE, SWEEP_FILE, TASK_FILE, check_out
    from dino_dense.report.intervals import IntervalConfig
    from dino_dense.report.machine import current_commit, environment, peak_memory_mib, reset_peak_memory
    from dino_dense.report.merge import read_entries
    from dino_dense.report.page import render_page
    from dino_dense.report.record import Metric, Picture, Published, Report, Score, published_numbers
    from dino_dense.report.table import Entry, batch_frame, pairs_frame
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "dino_dense.report.browser": ("open_page",),
            "dino_dense.report.compare": ("compare_all",),
            "dino_dense.report.machine": (
                "current_commit",
                "environment",
                "peak_memory_mib",
                "reset_peak_memory",
            ),
            "dino_dense.report.curves": ("read_curves",),
            "dino_dense.report.files": ("write_batch", "write_comparison"),
            "dino_dense.report.folders": ("PAIRS_FILE", "REPORT_FILE", "SWEEP_FILE", "TASK_FILE", "check_out"),
            "dino_dense.report.intervals": ("IntervalConfig",),
            "dino_dense.report.merge": ("read_entries",),
            "dino_dense.report.page": ("render_page",),
            "dino_dense.report.record": ("Metric", "Picture", "Published", "Report", "Score", "published_numbers"),
            "dino_dense.report.table": ("Entry", "batch_frame", "pairs_frame"),
        },
    )

__all__ = [
    "PAIRS_FILE",
    "REPORT_FILE",
    "SWEEP_FILE",
    "TASK_FILE",
    "Entry",
    "IntervalConfig",
    "Metric",
    "Picture",
    "Published",
    "Report",
    "Score",
    "batch_frame",
    "check_out",
    "compare_all",
    "current_commit",
    "environment",
    "open_page",
    "pairs_frame",
    "peak_memory_mib",
    "published_numbers",
    "read_curves",
    "read_entries",
    "render_page",
    "reset_peak_memory",
    "write_batch",
    "write_comparison",
]

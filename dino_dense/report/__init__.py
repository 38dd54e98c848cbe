"""Results as typed records, and everything made from them: tables, files, the page, comparisons."""

from dino_dense.report.compare import IntervalConfig, compare_all
from dino_dense.report.files import PAIRS_FILE, TASK_FILE, check_out, write_batch, write_comparison
from dino_dense.report.merge import read_entries
from dino_dense.report.page import render_page
from dino_dense.report.record import (
    Metric,
    Picture,
    Published,
    Report,
    Score,
    environment,
    peak_memory_mib,
    published_numbers,
    reset_peak_memory,
)
from dino_dense.report.table import Entry, batch_frame, pairs_frame

__all__ = [
    "PAIRS_FILE",
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
    "environment",
    "pairs_frame",
    "peak_memory_mib",
    "published_numbers",
    "read_entries",
    "render_page",
    "reset_peak_memory",
    "write_batch",
    "write_comparison",
]

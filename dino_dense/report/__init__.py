"""Results as typed records, and everything made from them: tables, files, the page, comparisons."""

from dino_dense.report.record import (
    Metric,
    Picture,
    Published,
    Report,
    Score,
    environment,
    peak_memory_mib,
    published_numbers,
    write_text,
)

__all__ = [
    "Metric",
    "Picture",
    "Published",
    "Report",
    "Score",
    "environment",
    "peak_memory_mib",
    "published_numbers",
    "write_text",
]

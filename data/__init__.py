"""Datasets and pixels: readers for public data sets, video and image files, and the embedded sample data.

Imports nothing of this project outside `data`.
"""


class DataError(ValueError):
    """Unusable data on disk. The message names the file, the problem and what to do."""

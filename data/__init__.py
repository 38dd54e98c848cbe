"""Datasets and pixels: readers for public data sets, video and image files, and the embedded sample data.

Imports nothing of this project outside ``data``.
"""


class DataError(ValueError):
    """Data on disk that cannot be used as asked: the message names the file, what is wrong and what to do."""

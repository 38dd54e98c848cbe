"""Versions of all that makes a number, so that what an earlier one made is made anew.

Raise an entry with every change of a number that this part gives for the same input, and the fingerprint beside it in
`tests/test_fingerprints.py`, which fails until then. The readers of backbones have theirs in their classes
(`backbone/reader.py`).
"""

VERSIONS = {
    # from images to features
    "image features": 2,
    "descriptors": 1,
    "attacks": 1,
    # from features to an answer
    "propagation": 1,
    "joints": 1,
    "objects": 1,
    "neighbors": 1,
    "memory": 1,
    "clustering": 1,
    "matching": 1,
    "tracks": 1,
    "token measures": 1,
    "class probe": 1,
    "pixel probe": 1,
    "depth probe": 1,
    "fine-tuning": 1,
    # from an answer to a score
    "classification scores": 1,
    "jf scores": 1,
    "saliency scores": 1,
    "box scores": 1,
    "segmentation scores": 1,
    "depth scores": 1,
    "retrieval scores": 1,
    "matched classes": 1,
    "keypoint scores": 1,
    "tracking scores": 1,
    "pose scores": 1,
}


def versions(*parts: str) -> dict[str, int]:
    """The versions of these parts.

    Raises:
        KeyError: there is no such part.
    """
    return {part: VERSIONS[part] for part in parts}

"""Propagation and scoring against what the published implementations compute (see reference_files)."""

import numpy as np
import pytest
import torch

from data.davis import load_davis
from tasks._propagation import propagate_labels
from tasks._scores.jf import score_sequence, summarise
from tests.reference_files import davis_root, reference


def test_label_propagation() -> None:
    arrays = reference("label_propagation")
    cases = sorted({key.split(".")[0] for key in arrays})
    assert cases
    for case in cases:
        target, sources, labels = (torch.from_numpy(arrays[f"{case}.{key}"]) for key in ("target", "sources", "labels"))
        h, w = (int(side) for side in arrays[f"{case}.hw"])
        ours = propagate_labels(
            target,
            sources,
            labels,
            hw=(h, w),
            radius=int(arrays[f"{case}.radius"]),
            top_k=int(arrays[f"{case}.topk"]),
            temperature=0.1,
        )
        np.testing.assert_allclose(ours.numpy(), arrays[f"{case}.out"][0], rtol=0, atol=1e-5, err_msg=case)


def test_davis_scores_of_the_stored_masks() -> None:
    arrays = reference("davis_masks")
    names = sorted({key.rsplit(".", 1)[0] for key in arrays})
    assert names
    for name in names:
        n_frames, height, width = (int(size) for size in arrays[f"{name}.shape"])
        (sequence,) = load_davis(davis_root(), year=2016, sequences=[name], max_frames=n_frames)
        pred = np.unpackbits(arrays[f"{name}.masks"], axis=-1)[..., :width]
        assert pred.shape == (n_frames, height, width)
        table = score_sequence(pred, sequence.read_masks(), sequence.num_objects, sequence=name)
        for metric in ("J", "F"):
            np.testing.assert_allclose(table[metric], arrays[f"{name}.{metric}"], rtol=0, atol=1e-9, err_msg=name)
        overall, per_sequence = summarise(table)
        np.testing.assert_allclose(overall.to_numpy()[0], arrays[f"{name}.stats"], rtol=0, atol=1e-6, err_msg=name)
        assert per_sequence["Sequence"].tolist() == [f"{name}_1"]
        assert per_sequence["J-Mean"][0] == pytest.approx(arrays[f"{name}.J"].mean(), abs=1e-9)

"""A backbone with a memory gives the same features, and asks the network once for each image."""

import pytest
import torch

from dino_dense import Backbone, load_backbone
from dino_dense.backbone.remembering import RememberingBackbone


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images of each call of the network."""
    calls: list[int] = []
    real = Backbone.extract

    def counted(self, images, *arguments, **options):
        calls.append(len(images))
        return real(self, images, *arguments, **options)

    monkeypatch.setattr(Backbone, "extract", counted)
    return calls


def test_each_image_is_extracted_once(asked: list[int]):
    backbone = load_backbone("random:vit_micro_patch8_64")
    images = torch.rand(5, 3, 16, 24)
    expected = backbone.extract(images).patches
    asked.clear()
    remembering = RememberingBackbone(backbone)
    for part in (images[:3], images[1:], images):
        offset = 1 if len(part) == 4 else 0
        ours = remembering.extract(part).patches
        torch.testing.assert_close(ours, expected[offset : offset + len(part)], atol=1e-5, rtol=1e-5)
    assert asked == [3, 2]
    assert remembering.weights_sha256 == backbone.weights_sha256


def test_another_request_is_another_feature(asked: list[int]):
    backbone = load_backbone("random:vit_micro_patch8_64")
    images = torch.rand(2, 3, 16, 16)
    remembering = RememberingBackbone(backbone)
    features = remembering.extract(images, {"patches", "cls"})
    assert features.cls.shape == (2, backbone.embed_dim)
    other = remembering.with_normalization((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert not torch.allclose(other.extract(images).patches, features.patches)
    assert not torch.allclose(remembering.extract(images, layers=[0]).patches, features.patches)
    assert not torch.allclose(remembering.extract(images, norm=False).patches, features.patches)
    with pytest.raises(ValueError, match="did not ask for cls"):
        _ = remembering.extract(images).cls
    assert asked == [2, 2, 2, 2, 2]


def test_beyond_its_limit_it_extracts_anew(asked: list[int]):
    backbone = load_backbone("random:vit_micro_patch8_64")
    images = torch.rand(3, 3, 16, 16)
    remembering = RememberingBackbone(backbone, limit=2 * 4 * 4 * backbone.embed_dim)
    first, again = (remembering.extract(images).patches for _ in range(2))
    torch.testing.assert_close(first, again, atol=1e-5, rtol=1e-5)
    assert asked == [3, 1]

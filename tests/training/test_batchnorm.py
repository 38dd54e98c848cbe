"""Batch normalization over processes: the network stays the one that it was."""

import pytest
import timm
import torch
from torch import nn

from dino_dense.training.batchnorm import synchronized

FAMILIES = [
    "resnet18",
    "resnetv2_18",
    "efficientnet_b0",
    "mobilenetv3_small_050",
    "regnety_002",
    "convnext_atto",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_conversion_changes_no_feature(name: str):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0).eval()
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        before = network(image)
        after = synchronized(network)(image)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_every_norm_is_converted():
    network = timm.create_model("efficientnet_b0", num_classes=0)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    converted = sum(isinstance(module, nn.SyncBatchNorm) for module in synchronized(network).modules())
    assert converted == norms > 0

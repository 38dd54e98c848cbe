"""Whether pretrained weights are at hand: a long command asks before it begins, and not after minutes of work."""

import urllib.error
import urllib.request
from pathlib import Path

import timm
from huggingface_hub import constants, try_to_load_from_cache

from dino_dense.backbone.dino_vit import check_timm_name
from dino_dense.backbone.load import HUBS, split_name

PATIENCE = 5.0
"""Seconds to wait for the hub's answer."""
WEIGHTS_FILES = ("model.safetensors", "pytorch_model.bin")


def why_out_of_reach(spec: str) -> str:
    """The reason why a checkpoint's weights cannot be had here now; empty if they can. Nothing is downloaded.

    Args:
        spec: see `load_backbone`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: timm has no pretrained weights of this name.
    """
    kind, name = split_name(spec)
    if not kind and not Path(spec).expanduser().exists():
        raise FileNotFoundError(
            f"{spec}: no such file or folder. Expected a checkpoint, timm:NAME, hf-hub:NAME or dino_dense:NAME."
        )
    if kind not in HUBS:
        return ""
    repository = name.partition("@")[0] if HUBS[kind] else _repository_of_timm(name)
    if any(isinstance(try_to_load_from_cache(repository, file), str) for file in WEIGHTS_FILES):
        return ""
    return _silence()


def _repository_of_timm(name: str) -> str:
    """The hub's repository with timm's pretrained weights of a name."""
    check_timm_name(name)
    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is None or not pretrained.hf_hub_id:
        raise ValueError(f"{name}: timm has no pretrained weights of this name. timm.list_pretrained() lists all.")
    return str(pretrained.hf_hub_id)


def _silence() -> str:
    """The reason why the hub does not answer; empty if it does."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the weights are not in the cache"
    try:
        # A proxy of the environment is used, as for the download itself.
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        return ""  # an answer
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return f"{constants.ENDPOINT} cannot be reached ({reason}), and the weights are not in the cache"
    return ""

"""The model card (README.md) of a folder that is carried out."""

import json
from collections.abc import Mapping
from pathlib import Path

from dino_dense.backbone.backbone import Backbone
from dino_dense.report.record import Report

USE = {
    "timm": 'import timm\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True)',
    "hf": 'from transformers import AutoModel\nmodel = AutoModel.from_pretrained("FOLDER")',
    "torch": 'import torch\npatches, cls, attention = torch.export.load("FOLDER/model.pt2").module()(images)',
    "onnx": (
        'import onnxruntime\nsession = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
        'patches, cls, attention = session.run(None, {"images": images})'
    ),
}
PIXELS = {
    "timm": "Images are normalized by the caller: mean {mean}, deviation {std}.",
    "hf": "Images are normalized by the processor of this folder: mean {mean}, deviation {std}.",
    "torch": "Images are float32 RGB in [0, 1]; the program normalizes them. Sides are multiples of {patch}.",
    "onnx": "Images are float32 RGB in [0, 1]; the program normalizes them. Sides are multiples of {patch}.",
}
POSITIONS = (
    "At other image sizes than that of the position table, {library} resamples positions by its own rule; "
    "dino_dense uses that of the network's authors. Features then differ a little."
)


def model_card(backbone: Backbone, kind: str, differences: Mapping[tuple[int, int], float], report: Path | None) -> str:
    """Markdown with what the network is, how to open it, how it was checked, and its results.

    Raises:
        ValueError, OSError: the report cannot be read.
    """
    checked = "; ".join(f"{height}x{width}: {value:.1e}" for (height, width), value in differences.items())
    lines = [
        "---",
        f"library_name: {'transformers' if kind == 'hf' else 'timm' if kind == 'timm' else 'pytorch'}",
        "tags: [image-feature-extraction, self-supervised, dino]",
        "---",
        "",
        f"# {backbone.name}",
        "",
        f"Carried out by dino_dense from `{backbone.spec}` (weights SHA-256 {backbone.weights_sha256[:16]}...).",
        "",
        f"- patch size {backbone.patch_size}, {backbone.embed_dim} channels, {backbone.depth} layers",
        f"- {PIXELS[kind].format(mean=list(backbone.mean), std=list(backbone.std), patch=backbone.patch_size)}",
        f"- largest difference to dino_dense, relative, at height x width: {checked}",
    ]
    if kind in ("timm", "hf"):
        lines.append("- " + POSITIONS.format(library={"timm": "timm", "hf": "transformers"}[kind]))
    lines += ["", "```python", USE[kind], "```", ""]
    training = {key: value for key, value in backbone.metadata.items() if key in ("step", "epoch", "run")}
    if training:
        lines += ["## Training", "", "```json", json.dumps(training, indent=2, default=str), "```", ""]
    if report is not None:
        lines += ["## Results", "", Report.from_json(report.read_text()).readable().to_markdown(index=False), ""]
    return "\n".join(lines)

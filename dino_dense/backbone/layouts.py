"""Find a network in a training tool's checkpoint: a table of rules, and the choice of one network of a file.

Names are dotted, as in a state dict. Nested dicts become dotted names too.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dino_dense.backbone.unpickle import StandIn, module_state

Tensors = dict[str, Tensor]

WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "parametrizations"})
"""Parts of a name that DistributedDataParallel, torch.compile, FSDP and checkpointing insert anywhere."""

CONTAINERS = ("state_dict", "model", "model_state_dict", "classy_state_dict", "base_model", "_method", "net", "network")
"""Words before a network's prefix that do not tell networks apart. Of two prefixes that differ only in such a word,
the word that is first in this list wins."""

ENDS = ("vit", "_feature_blocks", "dinov2", "dinov2_with_registers", "dinov3_vit", "trunk", "base_model", "0")
"""Words at the end of a prefix that do not tell networks apart: task models of transformers, lightly's and VISSL's."""

NO_NETWORK = frozenset(
    (
        "optimizer", "optimizers", "optimizer_states", "optimizer_state", "lr_scheduler", "lr_schedulers",
        "param_schedulers", "scheduler", "scaler", "fp16_scaler", "amp", "amp_scaler", "args", "hyper_parameters",
        "callbacks", "loops", "message_hub", "meta", "metric"
    )
)  # fmt: skip
"""Entries of a training file that hold no network."""

ANCHORS = (
    "patch_embed.proj.weight",  # DINO, DINOv2, DINOv3, MAE, timm
    "patch_embed.projection.weight",  # MMPretrain
    "embeddings.patch_embeddings.projection.weight",  # transformers: ViT, DINOv2
    "embeddings.patch_embeddings.weight",  # transformers: DINOv3
    "patch_embed.proj.0.0.weight",  # XCiT
    "patch_embed.proj.0.weight",  # MoCo v3's convolutional stem
    "layer1.0.conv1.weight",  # ResNet
    "4.0.conv1.weight",  # ResNet as a list of its parts (lightly's examples)
    "downsample_layers.0.0.weight",  # ConvNeXt, DINOv3's ConvNeXt
    "stages.0.layers.0.depthwise_conv.weight",  # transformers: ConvNeXt
    "stem.0.weight",  # timm: ConvNeXt
)
"""A parameter near the input of each kind of network; the part of its name before it is the network's prefix."""


@dataclass(frozen=True)
class Rule:
    """The networks in one tool's checkpoints. Prefixes are regular expressions, without containers and ends."""

    tool: str
    teacher: str | None
    """Prefix of the moving-average network."""
    student: str | None
    """Prefix of the trained network."""
    taken: str = "only"
    """"teacher" or "student", as the tool's authors evaluate; "only" for a tool with a single network."""
    only: str | None = None
    """Prefix of the network of a tool with a single network."""
    when: str | None = None
    """The rule applies only if some name of the file begins so."""
    unless: str | None = None
    """The rule applies only if no name of the file begins so."""


RULES = (
    Rule(
        "lightly-train, distillation", None, r"student_embedding_model\.wrapped_model\._model", "student",
        unless=r"(state_dict\.)?(_method\.)?teacher_(\w+_)?head",
    ),
    Rule(
        "lightly-train", r"teacher_embedding_model\.wrapped_model\._model",
        r"(student_embedding_model|embedding_model)\.wrapped_model\._model", "teacher",
    ),
    Rule("lightly-train", None, None, only=r"(wrapped_model\.)?_model"),
    Rule(
        "DINO, iBOT, DINOv2 or DINOv3", r"teacher(\.backbone)?|model_ema\.backbone", r"student(\.backbone)?", "teacher"
    ),
    Rule("MoCo v3", r"momentum_encoder", r"base_encoder", "student", when=r"(state_dict\.)?base_encoder"),
    Rule("MoCo", r"encoder_k", r"encoder_q", "student", when=r"(state_dict\.)?encoder_q"),
    Rule("I-JEPA", r"target_encoder", r"encoder", "teacher", when=r"(state_dict\.)?target_encoder"),
    Rule("VISSL", r"loss\.momentum_teacher", r"", "teacher", when=r"classy_state_dict\."),
    Rule("stable-pretraining", r"(backbone|encoder)\.teacher", r"(backbone|encoder)\.student", "teacher"),
    Rule("lightly", r"teacher_backbone", r"student_backbone", "teacher", when=r"(state_dict\.)?teacher_backbone"),
    Rule("lightly", r"backbone", r"student_backbone", "teacher", when=r"(state_dict\.)?student_backbone"),
    Rule(
        "MMPretrain or solo-learn", r"momentum_encoder(\.0)?|momentum_backbone|ema_state_dict\.backbone",
        r"backbone|encoder", "student", when=r"(state_dict\.)?(momentum_encoder|momentum_backbone)|ema_state_dict",
    ),
    Rule("timm with averaged weights", r"state_dict_ema|model_ema|ema", r"", "teacher", when=r"\w+_ema\b|ema\b"),
    Rule("a backbone inside a model", None, None, only=r"backbone|encoder"),
    Rule("a plain state dict", None, None, only=r""),
)  # fmt: skip
"""In order; the first rule that matches a network of the file decides."""


@dataclass(frozen=True)
class Chosen:
    """One network of a file."""

    weights: Tensors
    """Under the tool's names, without prefix and wrappers."""
    prefix: str
    """The prefix that was cut."""
    tool: str
    """The tool of the rule."""
    note: str
    """The network and the rule that chose it, for the user; "" for a plain file."""


class NoNetworkError(ValueError):
    """A file without a known network, or without the requested network."""


def choose_network(content: Any, network: str, anchors: Iterable[str] = ()) -> Chosen:
    """Take one network out of a checkpoint's content.

    Args:
        content: state dict, or dicts of dicts with a state dict somewhere inside.
        network: "auto" (the network that the tool's authors evaluate), "teacher", "student", or the prefix of its
            names.
        anchors: parameter names of the expected network, in addition to `ANCHORS`.

    Raises:
        NoNetworkError: no name is of a known network, or there is no network of this kind.
    """
    tensors = tensors_of(content)
    prefixes = _prefixes(tensors, [*ANCHORS, *anchors])
    if not prefixes:
        return Chosen(_at_the_top(tensors) or _dotted(tensors), "", "", "")
    if network not in ("auto", "teacher", "student"):
        return _by_prefix(tensors, prefixes, network)
    for rule in RULES:
        roles = _roles(rule, tensors, prefixes)
        if not roles:
            continue
        wanted = {"auto": (rule.taken, *roles), "teacher": ("teacher", "only"), "student": ("student",)}[network]
        role = next((role for role in wanted if role in roles), None)
        if role is None:
            break
        return _chosen(tensors, prefixes, roles[role], rule.tool)
    if network != "auto" or len(prefixes) > 1:
        raise NoNetworkError(_which(prefixes, network))
    return _chosen(tensors, prefixes, next(iter(prefixes)), "the only network in the file")


def _by_prefix(tensors: Tensors, prefixes: Mapping[str, str], network: str) -> Chosen:
    matching = [prefix for prefix in prefixes if network in (prefix, prefixes[prefix])]
    if len(matching) != 1:
        raise NoNetworkError(_which(prefixes, network))
    return _chosen(tensors, prefixes, matching[0], "--network")


def _which(prefixes: Mapping[str, str], network: str) -> str:
    names = ", ".join(sorted(prefix or "(no prefix)" for prefix in prefixes))
    wanted = "several networks" if network == "auto" else f"no {network}"
    return f"holds {wanted}. Networks in it: {names}. Leave out --network, or give it one of these prefixes."


def _chosen(tensors: Tensors, prefixes: Mapping[str, str], prefix: str, tool: str) -> Chosen:
    if prefix:
        inside = ((name.removeprefix(f"{prefix}."), name, value) for name, value in _dotted(tensors).items())
        weights = {short: value for short, name, value in inside if short != name}
    else:
        weights = _at_the_top(tensors)
    others = sorted(other for other in prefixes if other != prefix)
    note = f"the network {prefix!r} was taken ({tool})" if prefix and (others or prefixes[prefix]) else ""
    if others:
        note += f"; others: {', '.join(repr(other) for other in others)} (--network takes a prefix)"
    return Chosen(weights, prefix, tool, note)


def _at_the_top(tensors: Tensors) -> Tensors:
    """Tensors outside of nested dicts."""
    return {name: value for name, value in tensors.items() if "/" not in name}


def _dotted(tensors: Tensors) -> Tensors:
    """The tensors with the slash of nested dicts replaced by a dot in their names."""
    return {name.replace("/", "."): value for name, value in tensors.items()}


def tensors_of(content: Any) -> Tensors:
    """{name: tensor} of a content, without wrappers in the names; a slash joins the keys of nested dicts.

    Entries without a network (optimizers, schedules, options) are skipped.
    """
    result: Tensors = {}
    for name, value in _walk(content, ""):
        segments = (".".join(part for part in piece.split(".") if part not in WRAPPERS) for piece in name.split("/"))
        cleaned = "/".join(segment for segment in segments if segment)
        result[cleaned.removesuffix(".original") if "parametrizations" in name else cleaned] = value
    return result


def _walk(content: Any, start: str) -> Iterable[tuple[str, Tensor]]:
    if isinstance(content, StandIn):
        content = module_state(content)
    if not isinstance(content, Mapping):
        return
    for key, value in content.items():
        name = f"{start}{key}"
        if isinstance(value, Tensor):
            yield name, value
        elif str(key) not in NO_NETWORK:
            yield from _walk(value, f"{name}/")


def _prefixes(tensors: Tensors, anchors: Iterable[str]) -> dict[str, str]:
    """Prefix of each network in the file -> the prefix without containers and ends."""
    dotted = _dotted(tensors)
    prefixes: dict[str, str] = {}
    ends = tuple(f".{anchor}" for anchor in anchors)
    for name in dotted:
        for end in ends:
            if name.endswith(end):
                prefixes[name.removesuffix(end)] = ""
    if any(anchor in dotted for anchor in anchors):
        prefixes[""] = ""
    return {prefix: _bare(prefix) for prefix in sorted(prefixes, key=_order)}


def _order(prefix: str) -> tuple[int, str]:
    first = prefix.split(".", maxsplit=1)[0]
    return (CONTAINERS.index(first) if first in CONTAINERS else len(CONTAINERS), prefix)


def _bare(prefix: str) -> str:
    parts = prefix.split(".") if prefix else []
    while parts and parts[0] in CONTAINERS:
        parts.pop(0)
    while parts and parts[-1] in ENDS:
        parts.pop()
    return ".".join(parts)


def _roles(rule: Rule, tensors: Tensors, prefixes: Mapping[str, str]) -> dict[str, str]:
    """The file's prefixes for the rule's teacher and student; {} if the rule does not apply."""
    names = _dotted(tensors)
    if rule.when is not None and not any(re.match(rule.when, name) for name in names):
        return {}
    if rule.unless is not None and any(re.match(rule.unless, name) for name in names):
        return {}
    roles: dict[str, str] = {}
    for role, pattern in (("teacher", rule.teacher), ("student", rule.student), ("only", rule.only)):
        for prefix, bare in prefixes.items():
            if pattern is not None and re.fullmatch(pattern, bare):
                roles.setdefault(role, prefix)
    return roles

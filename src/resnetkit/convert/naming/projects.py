"""The table of projects: each row tells how to recognise a project's files, and how to convert its names and tensors.

Our names are torchvision's, and timm's for layers that torchvision does not have.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from resnetkit.convert.naming import layouts
from resnetkit.convert.naming.layouts import Tensors
from resnetkit.models.spec import ModelSpec

LONGEST_NAME = 200
"""Largest number of characters of a name that is matched. Longer names are attacks, since matching them is slow."""


@dataclass(frozen=True)
class Project:
    """A project that publishes residual networks."""

    name: str
    known_by: Mapping[str, tuple[int | None, ...]]
    """Patterns of names -> shape. Its files have a tensor for each pattern. None fits any side, () fits any shape."""
    without: tuple[str, ...] = ()
    """Patterns of names that its files do not have."""
    entries: tuple[str, ...] = ()
    """Patterns of other entries of a checkpoint. If there are any, its files have at least one of these entries."""
    rules: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    """Pairs of a pattern and our name (or a function that returns it). The first pattern that fits a name is used."""
    prepare: Callable[[Tensors], dict[str, Tensor]] = dict
    """Converts renamed tensors from the project's layout to ours, in the same way for all networks."""
    reorder: Callable[[Tensors, ModelSpec], dict[str, Tensor]] = lambda tensors, _: dict(tensors)
    """Converts prepared tensors in a way that depends on the network; only called with all tensors of the network."""
    implies: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the spec, with values that hold for all networks of the project."""
    usual_fields: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the spec, with values that hold for most networks. The user is told that they are assumed."""
    notes: tuple[str, ...] = ()
    """Other assumptions that the user is told."""
    published: Mapping[int, tuple[str, str | None]] = field(default_factory=dict)
    """Number of classes -> names of the preprocessing and the classes of the project's published weights.

    0 is for weights without a last layer, which have no classes (None).
    """
    leaves: Mapping[str, str] = field(default_factory=dict)
    """Patterns of names of tensors that are left out -> the component they belong to."""
    unread: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """Patterns of names in networks that can't be converted -> (description of the networks, reason)."""
    registered: bool = False
    """Whether some files with its names are known by their hash."""

    def rename(self, name: str) -> str:
        """Return our name for one of its names; a name that fits no rule stays unchanged."""
        if len(name) > LONGEST_NAME:
            return name
        for pattern, ours in self.rules:
            if found := re.fullmatch(pattern, name):
                return found.expand(ours) if isinstance(ours, str) else ours(found)
        return name


def recognise(tensors: Tensors, other_entries: Iterable[str] = ()) -> Project | None:
    """Return the first row of PROJECTS that these tensors and other entries of the file fit; None if there is none."""
    names = [name.rpartition(".")[2] for name in other_entries]
    return next((project for project in PROJECTS if _has_all(project, tensors, names)), None)


def _has_all(project: Project, tensors: Tensors, entries: list[str]) -> bool:
    if project.entries and not any(re.fullmatch(pattern, name) for pattern in project.entries for name in entries):
        return False
    has = all(
        any(re.fullmatch(pattern, name) and _fits(tensors[name].shape, shape) for name in tensors)
        for pattern, shape in project.known_by.items()
    )
    return has and not any(re.fullmatch(pattern, name) for pattern in project.without for name in tensors)


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    sides = zip(shape, wanted, strict=False)
    return not wanted or (len(shape) == len(wanted) and all(want in (None, side) for side, want in sides))


MAP = (None, None, None, None)
"""Fits the shape of any convolution's weight."""
CIFARS = {10: ("cifar10", "cifar10"), 100: ("cifar100", "cifar100")}
"""`published` for projects that use CIFAR's own means."""
ON_CIFAR = {"stem": "cifar", "downsample_in": "3x3", "blur": 0}
"""`implies` for projects with networks for CIFAR."""
PARTS = r"([0-7])\.((?:weight|bias|running_\w+|num_batches_tracked)|\d+\..+)"
"""Pattern for a Sequential of torchvision's parts: the index of a part, and the rest of the name."""

PROJECTS = (
    Project(
        "Keras",
        known_by={"conv1_conv/kernel": (), "conv2_block1_1_conv/kernel": ()},
        rules=(
            (r"conv(\d+)(?:_block(\d+)_(\d))?_(conv|bn)/(\w+)", layouts.from_keras),
            (r"(?:probs|predictions|dense)(?:_\d+)?/kernel", "fc.weight"),
            (r"(?:probs|predictions|dense)(?:_\d+)?/bias", "fc.bias"),
        ),
        prepare=layouts.fold_keras,
        implies={"downsample_in": "1x1", "blur": 0},
        published={1000: ("caffe", "imagenet"), 0: ("caffe", None)},
        unread={
            r"conv2_block1_preact_bn/.+|post_bn/.+": (
                "a ResNet V2 (ResNet50V2, ...)",
                "only ResNet V1 can be converted",
            )
        },
    ),
    Project(
        "transformers",
        known_by={r"(resnet\.)?embedder\.embedder\.convolution\.weight": ()},
        rules=(
            (r"(?:resnet\.)?embedder\.embedder\.convolution\.(.+)", r"conv1.\1"),
            (r"(?:resnet\.)?embedder\.embedder\.normalization\.(.+)", r"bn1.\1"),
            (
                r"(?:resnet\.)?encoder\.stages\.(\d+)\.layers\.(\d+)\."
                r"(?:shortcut|layer\.(\d+))\.(convolution|normalization)\.(\w+)",
                layouts.from_transformers,
            ),
            (r"classifier\.1\.(.+)", r"fc.\1"),
        ),
        implies={"downsample_in": "3x3", "blur": 0},
        published={1000: ("imagenet-bicubic", "imagenet")},
    ),
    Project(
        "akamaster/pytorch_resnet_cifar10 (option B)",
        known_by={
            r"conv1\.weight": (16, 3, 3, 3),
            r"linear\.weight": (None, 64),
            r"layer2\.0\.shortcut\.0\.weight": (32, 16, 1, 1),
        },
        rules=((r"linear\.(.+)", r"fc.\1"), (r"(.+)\.shortcut\.(.+)", r"\1.downsample.\2")),
        implies={"shortcut": "B", "blur": 0},
        published={10: ("cifar-imagenet", "cifar10")},
    ),
    Project(
        "akamaster/pytorch_resnet_cifar10",
        known_by={r"conv1\.weight": (16, 3, 3, 3), r"linear\.weight": (None, 64)},
        rules=((r"linear\.(.+)", r"fc.\1"),),
        reorder=layouts.from_symmetric_padding,
        implies={"shortcut": "A", "blur": 0},
        published={10: ("cifar-imagenet", "cifar10")},
    ),
    Project(
        "kuangliu/pytorch-cifar",
        known_by={
            r"conv1\.weight": (None, None, 3, 3),
            r"layer2\.0\.shortcut\.0\.weight": (None, None, 1, 1),
            r"linear\.weight": (None, None),
        },
        rules=((r"linear\.(.+)", r"fc.\1"), (r"(.+)\.shortcut\.(.+)", r"\1.downsample.\2")),
        implies=ON_CIFAR,
        published=CIFARS,
    ),
    Project(
        "weiaicunzai/pytorch-cifar100",
        known_by={r"conv2_x\.0\.residual_function\.0\.weight": MAP},
        rules=(
            (r"conv1\.0\.(.+)", r"conv1.\1"),
            (r"conv1\.1\.(.+)", r"bn1.\1"),
            (r"conv(\d+)_x\.(\d+)\.residual_function\.(\d)\.(.+)", layouts.from_residual_function),
            (
                r"conv(\d+)_x\.(\d+)\.shortcut\.(\d)\.(.+)",
                lambda found: f"layer{int(found[1]) - 1}.{found[2]}.downsample.{found[3]}.{found[4]}",
            ),
        ),
        implies=ON_CIFAR,
        published=CIFARS,
    ),
    Project(
        "timm (resnetv2)",
        known_by={r"stages\.\d+\.blocks\.0\.norm1\.weight": ()},
        rules=(
            (r"stem\.conv\.(.+)", r"conv1.\1"),
            (r"stem\.(conv|norm)(\d)\.(.+)", layouts.from_deep_stem),
            (r"stages\.(\d+)\.blocks\.(\d+)\.(conv|norm|downsample)(\d|\.conv)\.(.+)", layouts.from_resnetv2),
            (r"head\.fc\.(.+)", r"fc.\1"),
        ),
        prepare=layouts.settle_resnetv2,
        # BiT has the same names without running statistics. Its weights are standardised, so it is another network.
        implies={"order": "pre", "norm": "batch"},
    ),
    Project(
        "fastai",
        known_by={r"0\.0\.(0\.)?weight": MAP, r"0\.4\.0\.conv1\.weight": MAP},
        rules=((rf"0\.{PARTS}", layouts.from_children), (r"1\.(.+)", r"head.\1")),
        implies={"downsample_in": "3x3", "order": "post"},
        usual_fields={"blur": 0},
        published={0: ("imagenet", None)},
    ),
    Project(
        "a Sequential of torchvision's parts",
        known_by={r"(features\.)?0\.(0\.)?weight": MAP, r"(features\.)?4\.0\.conv1\.weight": MAP},
        rules=((rf"features\.{PARTS}", layouts.from_children), (PARTS, layouts.from_children)),
        implies={"order": "post"},
        usual_fields={"downsample_in": "3x3", "blur": 0},
        published={0: ("imagenet", None)},
    ),
    Project(
        "detectron2",
        known_by={r"res2\.0\.conv1\.norm\.weight": (None,)},
        rules=(
            (r"stem\.conv1\.norm\.(.+)", r"bn1.\1"),
            (r"stem\.conv1\.(.+)", r"conv1.\1"),
            (
                r"(?:roi_heads\.)?res(\d)\.(\d+)\.(conv\d|shortcut)\.(norm\.)?(\w+)",
                layouts.from_detectron2,
            ),
            (r"(?:linear|stem\.fc)\.(.+)", r"fc.\1"),
        ),
        prepare=layouts.turn_channels,
        notes=(
            "its input channels are blue, green, red, as detectron2's default: those of the first layer are reversed",
        ),
        published={0: ("caffe", None)},
        leaves={r"(fpn|top_block|proposal_generator|roi_heads|head)\w*\..+|pixel_(mean|std)": "the detector"},
    ),
    Project(
        "Caffe2",
        known_by={r"res2_0_branch2a_w": MAP, "conv1_w": MAP},
        rules=(
            (r"conv1_w", "conv1.weight"),
            (r"conv1_b", "conv1.bias"),
            (r"res_conv1_(bn_\w+)", lambda found: f"bn1.{layouts.CAFFE2_VALUES[found[1]]}"),
            (r"res(\d)_(\d+)_branch(1|2[abc])_(w|bn_(?:s|b|rm|riv))", layouts.from_caffe2),
            (r"(?:fc1000|pred|last_out_L1000)_w", "fc.weight"),
            (r"(?:fc1000|pred|last_out_L1000)_b", "fc.bias"),
        ),
        prepare=layouts.settle_caffe2,
        implies={"order": "post", "blur": 0},
        usual_fields={"downsample_in": "1x1"},
        notes=("its input channels are blue, green, red, as in Caffe: those of the first layer are reversed",),
        published={1000: ("caffe", "imagenet"), 0: ("caffe", None)},
        leaves={r".+_momentum|(rpn|fpn|bbox|cls|fc[67]|mask|kps|roi)_?.*|lr|weight_order": "the detector"},
    ),
    Project(
        "OpenAI's CLIP or open_clip",
        known_by={r"(visual\.)?attnpool\.positional_embedding": ()},
        unread={
            r"(visual\.)?attnpool\.positional_embedding": (
                "a ModifiedResNet",
                "networks here do not have its attention pool, its stem and its pooled strides",
            )
        },
    ),
    Project(
        "Cadene/pretrained-models.pytorch",
        known_by={r"layer1\.0\.se_module\.fc1\.weight": ()},
        unread={
            r"layer1\.0\.se_module\.fc1\.weight": (
                "a network with squeeze-and-excitation",
                "it pools after the stem without padding; timm's (seresnet50) can be converted",
            )
        },
    ),
    Project(
        "kuangliu/pytorch-cifar or bearpaw/pytorch-classification",
        known_by={r"layer1\.0\.bn1\.weight": (None,), r"layer1\.0\.conv1\.weight": MAP, r"(linear|fc)\.weight": ()},
        without=(r"bn1\.weight", r"norm\.weight"),
        unread={
            r"layer1\.0\.bn1\.weight": (
                "a pre-activation network",
                "its projections and its last layers differ from those in the paper, which networks here have",
            )
        },
    ),
    Project(
        "mmpretrain",
        known_by={r"layer1\.0\.conv1\.weight": MAP, r"head\.fc\.weight": (None, None)},
        rules=(
            (r"stem\.([01346])\.(.+)", r"conv1.\1.\2"),
            (r"stem\.7\.(.+)", r"bn1.\1"),
            (r"(.+)\.se_layer\.conv([12])\.conv\.(.+)", r"\1.se.fc\2.\3"),
            (r"head\.fc\.(.+)", r"fc.\1"),
        ),
        implies={"order": "post", "blur": 0},
        usual_fields={"downsample_in": "3x3"},
        published={1000: ("imagenet", "imagenet"), **CIFARS},
        leaves={r"data_preprocessor\..+": "the constants of its preprocessing"},
    ),
    Project(
        "MoCo",
        known_by={r"layer1\.0\.conv1\.weight": MAP},
        entries=(r"queue",),
        implies={"order": "post", "blur": 0},
        usual_fields={"downsample_in": "3x3"},
        published={0: ("imagenet", None)},
        leaves={r"fc\..+": "the projection, which is only for its training"},
    ),
    Project(
        "torchvision's detection or segmentation",
        known_by={r"layer1\.0\.conv1\.weight": MAP},
        entries=(r"rpn|aux_classifier|roi_heads",),
        implies={"order": "post", "blur": 0},
        usual_fields={"downsample_in": "3x3"},
        published={0: ("imagenet", None)},
    ),
    Project(
        "torchvision or timm",
        known_by={r"layer\d+\.0\.(conv|bn)1\.weight": ()},
        published={0: ("imagenet", None)},
        registered=True,
    ),
)

"""The network of a `ModelSpec` as a torch module, and constructors with torchvision's names and arguments."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resnetkit.errors import UsageError
from resnetkit.models.blocks import (
    BasicBlock,
    Bottleneck,
    NormLayer,
    PadShortcut,
    PlainBasicBlock,
    PlainBottleneck,
    conv3x3,
    pooled_projection,
    projection,
)
from resnetkit.models.geometry import NORM_GROUPS, STEMS, BlockSpec, NormName
from resnetkit.models.layers import Blur, FrozenBatchNorm2d
from resnetkit.models.preactivation import PreBasicBlock, PreBottleneck, SharedPreBasicBlock, SharedPreBottleneck
from resnetkit.models.spec import SPECS, ModelSpec, parse_spec
from resnetkit.models.weights import check_fits, chosen_weights, load_published

NORMS: dict[NormName, NormLayer] = {
    "batch": nn.BatchNorm2d,
    "group": partial(nn.GroupNorm, NORM_GROUPS),
    "frozen": FrozenBatchNorm2d,
}
# The forms of Fig. 5's two blocks: (basic, bottleneck).
POST = {"basic": BasicBlock, "bottleneck": Bottleneck}
PLAIN = {"basic": PlainBasicBlock, "bottleneck": PlainBottleneck}
PRE = {"basic": PreBasicBlock, "bottleneck": PreBottleneck}
SHARED_PRE = {"basic": SharedPreBasicBlock, "bottleneck": SharedPreBottleneck}

RunStage = Callable[[nn.Module, Tensor], Tensor]
"""Computes a stage: gets its nn.Sequential of blocks and its input map, and returns its output map."""


class ResNet(nn.Module):
    """The network of a spec, with He initialisation (fan-out, as in torchvision).

    With the same seed, it has the same tensors as torchvision's network: the same names, order and initial values.
    `norm_layer` returns a normalisation for a number of channels (default: the one that `spec.norm` names). With
    `zero_init_residual`, every residual starts at zero (arXiv:1706.02677). This raises UsageError if the network would
    then return only zeros (a plain net) or if the zeros could never change (frozen normalisation).
    """

    def __init__(
        self, spec: ModelSpec, *, zero_init_residual: bool = False, norm_layer: NormLayer | None = None
    ) -> None:
        super().__init__()
        if zero_init_residual and spec.shortcut == "none":
            raise UsageError("`zero_init_residual` needs shortcuts; with shortcut=none, every block would return zeros")
        if zero_init_residual and spec.norm == "frozen" and spec.order == "post" and norm_layer is None:
            raise UsageError(
                "`zero_init_residual` needs a normalisation that is trained; with norm=frozen it would stay zero"
            )
        norm_layer = norm_layer or NORMS[spec.norm]
        pre = spec.order == "pre"
        self.spec = spec
        self.conv1 = _stem(spec, norm_layer)
        self.bn1 = nn.Identity() if pre else norm_layer(spec.width)
        self.relu = nn.Identity() if pre else nn.ReLU(inplace=True)
        self.maxpool = _pooling(spec)
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(spec.depths) + 1))
        for name, stage in zip(self.stage_names, spec.stages, strict=True):
            self.add_module(name, nn.Sequential(*(_block(spec, row, norm_layer) for row in stage)))
        self.norm = norm_layer(spec.channels[-1]) if pre else nn.Identity()
        self.last_relu = nn.ReLU(inplace=True) if pre else nn.Identity()
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(spec.channels[-1], spec.classes)
        _initialise(self, zero_init_residual=zero_init_residual)

    @property
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        """The modules of each part, in the order of the paper's Table 1: stem, layer1, layer2, ..., head.

        A pre-activation net has one more normalisation and ReLU after its last block. They belong to the last stage
        ("we adopt an extra activation right after its element-wise addition", arXiv:1603.05027, Appendix).
        """
        stages: dict[str, tuple[nn.Module, ...]] = {name: (self.get_submodule(name),) for name in self.stage_names}
        stages[self.stage_names[-1]] += (self.norm, self.last_relu)
        return {
            "stem": (self.conv1, self.bn1, self.relu, self.maxpool),
            **stages,
            "head": (self.avgpool, self.fc),
        }

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The blocks of all stages in their order."""
        return tuple(block for name in self.stage_names for block in self.get_submodule(name).children())

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map that `features` returns."""
        return self.spec.channels

    def forward(self, images: Tensor) -> Tensor:
        """Map images (n, in_channels, h, w) to logits (n, classes)."""
        return self.run(images)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the output map of each stage: c2 to c5, or c2 to c4 of a CIFAR net.

        `images` has shape (n, in_channels, h, w); h and w must be at least `spec.least_size`. Map i has shape
        (n, channels[i], ⌈h / spec.strides[i]⌉, ⌈w / spec.strides[i]⌉). In a pre-activation net, normalisation and ReLU
        are applied to the last map; the other maps are sums without them.
        """
        x = self.run(images, last="stem")
        maps: list[Tensor] = []
        for name in self.stage_names:
            x = self.run(x, first=name, last=name)
            maps.append(x)
        return tuple(maps)

    def run(self, x: Tensor, *, first: str = "stem", last: str = "head", run_stage: RunStage | None = None) -> Tensor:
        """Run the parts from `first` to `last`, both included, which are names in `parts`; return the last output.

        The stem maps images (n, in_channels, h, w) to a map (n, width, ...). A stage maps the output of the part before
        it to its own map, as in `features`. The head averages the last map over its positions and returns logits
        (n, classes). `run_stage` computes a stage from its nn.Sequential of blocks and its input; by default the stage
        is called. Raises UsageError for a part that the network does not have, and if `last` comes before `first`.
        """
        for name in self._between(first, last):
            if name == "stem":
                x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            elif name == "head":
                x = self.fc(torch.flatten(self.avgpool(x), 1))
            else:
                stage = self.get_submodule(name)
                x = run_stage(stage, x) if run_stage else stage(x)
                if name == self.stage_names[-1]:
                    x = self.last_relu(self.norm(x))
        return x

    def _between(self, first: str, last: str) -> tuple[str, ...]:
        """Return the names of the parts from `first` to `last`."""
        names = ("stem", *self.stage_names, "head")
        for argument, name in (("first", first), ("last", last)):
            if name not in names:
                raise UsageError(f"`{argument}` is {name}; the parts of this network are {', '.join(names)}")
        found = names[names.index(first) : names.index(last) + 1]
        if not found:
            raise UsageError(f"`last` is {last}, which comes before {first}; give a later part")
        return found


def _stem(spec: ModelSpec, norm_layer: NormLayer) -> nn.Module:
    """Return the convolution before the first stage, or the three convolutions of a deep stem."""
    kernels, stride, *_ = STEMS[spec.stem]
    if len(kernels) == 1:
        kernel = kernels[0]
        return nn.Conv2d(spec.in_channels, spec.width, kernel, stride, padding=kernel // 2, bias=False)
    first, second, last = STEMS[spec.stem].widths(spec.width)
    return nn.Sequential(
        conv3x3(spec.in_channels, first, stride),
        norm_layer(first),
        nn.ReLU(inplace=True),
        conv3x3(first, second),
        norm_layer(second),
        nn.ReLU(inplace=True),
        conv3x3(second, last),
    )


def _pooling(spec: ModelSpec) -> nn.Module:
    """Return the max pooling after the stem's convolutions; with a blur, the blur has the stride."""
    stride = STEMS[spec.stem].pool_stride
    if stride == 1:
        return nn.Identity()
    if spec.blur:
        return nn.Sequential(nn.MaxPool2d(3, 1, padding=1), Blur(spec.blur, stride))
    return nn.MaxPool2d(3, stride, padding=1)


def _shortcut(spec: ModelSpec, row: BlockSpec, norm_layer: NormLayer) -> nn.Module | None:
    """Return the shortcut of a block; None is the identity."""
    if row.shortcut == "pad":
        return PadShortcut(row.inputs, row.outputs, row.stride)
    if row.shortcut != "project":
        return None
    norm = nn.Identity if spec.order == "pre" else norm_layer
    if spec.pooled_shortcut:
        dilations = {"dilation": row.dilation, "out_dilation": row.out_dilation}
        return pooled_projection(row.inputs, row.outputs, row.stride, norm, **dilations)
    return projection(row.inputs, row.outputs, row.stride, norm)


def _block(spec: ModelSpec, row: BlockSpec, norm_layer: NormLayer) -> nn.Module:
    """Return one block with its shortcut."""
    pre, plain = spec.order == "pre", row.shortcut == "none"
    forms = SHARED_PRE if pre and row.shared else PRE if pre else PLAIN if plain else POST
    # The shortcut is made first: torchvision draws the initial values in this order.
    downsample = _shortcut(spec, row, norm_layer)
    return forms[spec.block](
        row.inputs,
        row.planes,
        row.stride,
        downsample,
        spec.groups,
        spec.width_per_group,
        row.dilation,
        norm_layer,
        out_dilation=row.out_dilation,
        downsample_in=spec.downsample_in,
        attention=spec.attention,
        blur=spec.blur,
        drop_path=row.drop_path,
    )


def _initialise(net: ResNet, *, zero_init_residual: bool) -> None:
    """Draw He's initial values (arXiv:1502.01852) in the order of the modules; the classifier keeps torch's default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            if module.weight.is_meta:  # it has no values, and drawing them would import torch's compiler (over 1 s)
                return
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if not zero_init_residual:
        return
    for module in net.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            gain = getattr(module.last_layer, "weight", None)
            if isinstance(gain, Tensor):  # a custom normalisation may have no gain
                nn.init.zeros_(gain)


def build(
    model: str | ModelSpec,
    *,
    zero_init_residual: bool = False,
    norm_layer: NormLayer | None = None,
    **changes: Any,
) -> ResNet:
    """Return a network with new weights from a name or a spec, and changes to its fields.

    Example: `build("resnet20,shortcut=B", classes=100, in_channels=1)`; see parse_spec for the syntax. Other arguments
    are those of ResNet. Raises UsageError for an unknown name or a network that can't be built.
    """
    return ResNet(parse_spec(model, **changes), zero_init_residual=zero_init_residual, norm_layer=norm_layer)


class Constructor(Protocol):
    """The signature of torchvision's constructors. Defaults of `groups` and `width_per_group` depend on the network."""

    def __call__(
        self,
        pretrained: bool = False,
        progress: bool = True,
        *,
        weights: object = None,
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = ...,
        width_per_group: int = ...,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
    ) -> ResNet:
        """Return the network, with new weights or published ones."""
        ...


def _constructor(name: str) -> Constructor:
    """Return the constructor of a row of SPECS."""
    row = SPECS[name]

    def construct(
        pretrained: bool = False,
        progress: bool = True,
        *,
        weights: object = None,
        num_classes: int = row.classes,
        zero_init_residual: bool = False,
        groups: int = row.groups,
        width_per_group: int = row.width_per_group,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
    ) -> ResNet:
        chosen = chosen_weights(name, pretrained=pretrained, weights=weights)
        dilated = replace_stride_with_dilation
        if dilated is not None and len(dilated) != len(row.depths) - 1:
            raise UsageError(
                f"`replace_stride_with_dilation` is {list(dilated)}; it takes None or {len(row.depths) - 1} values, "
                f"one for each stage after the first"
            )
        spec = replace(
            row,
            classes=num_classes,
            groups=groups,
            width_per_group=width_per_group,
            dilated=tuple(dilated or ()),
        )
        if chosen:
            check_fits(spec, chosen)  # before the network is made or a file is downloaded
        net = build(spec, zero_init_residual=zero_init_residual, norm_layer=norm_layer)
        if chosen:
            load_published(net, chosen, progress=progress)
        return net

    construct.__name__ = construct.__qualname__ = name
    construct.__doc__ = f"""{name}: {row.layers} layers, {row.parameters:,} parameters, {row.macs() / 1e9:.2f} GMACs.

    The arguments are those of torchvision; `replace_stride_with_dilation` works in every block. `weights` is a name in
    `resnetkit models {name}`, "DEFAULT", a member of torchvision's enumeration, or a repository of timm's on the
    Hugging Face Hub (OWNER/NAME, extra `hub`); `pretrained=True` is torchvision's IMAGENET1K_V1. `progress` shows a
    progress bar for a download. Raises UsageError for a network that can't be built or weights that do not fit it,
    DataError for a failed download.
    """
    return construct


resnet18 = _constructor("resnet18")
resnet34 = _constructor("resnet34")
resnet50 = _constructor("resnet50")
resnet101 = _constructor("resnet101")
resnet152 = _constructor("resnet152")
resnext50_32x4d = _constructor("resnext50_32x4d")
resnext101_32x8d = _constructor("resnext101_32x8d")
resnext101_64x4d = _constructor("resnext101_64x4d")
wide_resnet50_2 = _constructor("wide_resnet50_2")
wide_resnet101_2 = _constructor("wide_resnet101_2")

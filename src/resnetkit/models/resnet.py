"""The residual network that a `ModelSpec` describes, and the constructors that people know from torchvision."""

from collections.abc import Sequence
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
    projection,
)
from resnetkit.models.geometry import STEMS, BlockSpec
from resnetkit.models.spec import SPECS, ModelSpec, parse_spec


class ResNet(nn.Module):
    """The network of a spec, with He initialisation (fan-out, as in torchvision).

    With the same seed it has torchvision's tensors: same names, same order, same first values. `norm_layer` makes the
    normalisations from their channels (default: BatchNorm2d). `zero_init_residual` starts every block as its shortcut
    (arXiv:1706.02677); in a plain net that would stop the signal, and raises UsageError.
    """

    def __init__(
        self, spec: ModelSpec, *, zero_init_residual: bool = False, norm_layer: NormLayer | None = None
    ) -> None:
        super().__init__()
        if zero_init_residual and spec.shortcut == "none":
            raise UsageError("zero_init_residual needs shortcuts; without them (shortcut=none) nothing gets through")
        norm_layer = norm_layer or nn.BatchNorm2d
        stem = STEMS[spec.stem]
        self.spec = spec
        self.conv1 = nn.Conv2d(
            spec.in_channels, spec.width, stem.kernel, stem.stride, padding=stem.kernel // 2, bias=False
        )
        self.bn1 = norm_layer(spec.width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stem.pool_stride, padding=1) if stem.pool_stride > 1 else nn.Identity()
        self._stage_names = [f"layer{number}" for number in range(1, len(spec.depths) + 1)]
        for name, stage in zip(self._stage_names, spec.stages, strict=True):
            self.add_module(name, nn.Sequential(*(_block(spec, row, norm_layer) for row in stage)))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(spec.channels[-1], spec.classes)
        _initialise(self, zero_init_residual=zero_init_residual)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of each map that `features` returns."""
        return self.spec.channels

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the last map of each stage: c2 to c5, or c2 to c4 of a CIFAR net.

        `images` has shape (n, in_channels, h, w), any h and w. Map i has shape
        (n, channels[i], ⌈h / spec.strides[i]⌉, ⌈w / spec.strides[i]⌉).
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps: list[Tensor] = []
        for name in self._stage_names:
            x = self.get_submodule(name)(x)
            maps.append(x)
        return tuple(maps)

    def head(self, x: Tensor) -> Tensor:
        """Average the last map (n, channels[-1], h, w) over its places and classify it: logits (n, classes)."""
        return self.fc(torch.flatten(self.avgpool(x), 1))

    def forward(self, images: Tensor) -> Tensor:
        """(n, in_channels, h, w) to logits (n, classes)."""
        return self.head(self.features(images)[-1])


def _block(spec: ModelSpec, row: BlockSpec, norm_layer: NormLayer) -> nn.Module:
    """Make one block with its shortcut."""
    # The shortcut is made first: torchvision draws the first values in that order.
    downsample: nn.Module | None = None
    if row.shortcut == "project":
        downsample = projection(row.inputs, row.outputs, row.stride, norm_layer)
    elif row.shortcut == "pad":
        downsample = PadShortcut(row.inputs, row.outputs, row.stride)
    plain = row.shortcut == "none"
    sizes = (
        row.inputs,
        row.planes,
        row.stride,
        downsample,
        spec.groups,
        spec.width_per_group,
        row.dilation,
        norm_layer,
    )
    if spec.block == "basic":
        return (PlainBasicBlock if plain else BasicBlock)(*sizes, out_dilation=row.out_dilation)
    return (PlainBottleneck if plain else Bottleneck)(
        *sizes, out_dilation=row.out_dilation, downsample_in=spec.downsample_in
    )


def _initialise(net: ResNet, *, zero_init_residual: bool) -> None:
    """Draw He's first values (arXiv:1502.01852) in the order of the modules; the classifier keeps torch's default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm) and module.affine:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if not zero_init_residual:
        return
    for module in net.modules():
        if isinstance(module, BasicBlock | Bottleneck):
            gain = getattr(module.last_norm, "weight", None)
            if isinstance(gain, Tensor):  # a normalisation without a gain has nothing to set to zero
                nn.init.zeros_(gain)


def build(
    model: str | ModelSpec,
    *,
    zero_init_residual: bool = False,
    norm_layer: NormLayer | None = None,
    **changes: Any,
) -> ResNet:
    """Make a network with new weights from a name or a spec, and changes to its row.

    `build("resnet20,shortcut=B", classes=100, in_channels=1)`; the grammar is parse_spec's. Raises UsageError.
    """
    return ResNet(parse_spec(model, **changes), zero_init_residual=zero_init_residual, norm_layer=norm_layer)


class Constructor(Protocol):
    """The signature that torchvision's constructors share; the defaults of groups and widths are the row's."""

    def __call__(
        self,
        pretrained: bool = False,
        progress: bool = True,
        *,
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = ...,
        width_per_group: int = ...,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
    ) -> ResNet:
        """Make the network with new weights."""
        ...


def _constructor(name: str) -> Constructor:
    """Make the constructor of a row."""
    row = SPECS[name]

    def construct(
        pretrained: bool = False,
        progress: bool = True,
        *,
        num_classes: int = row.classes,
        zero_init_residual: bool = False,
        groups: int = row.groups,
        width_per_group: int = row.width_per_group,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
    ) -> ResNet:
        if pretrained:
            raise UsageError(
                f"{name}(pretrained={pretrained!r}): this version can't fetch weights. Make {name}() and give its "
                f"load_state_dict the state_dict of torchvision's {name}, which has the same names; "
                f"or open a model file with resnetkit.load(path)."
            )
        dilated = replace_stride_with_dilation
        if dilated is not None and len(dilated) != len(row.depths) - 1:
            raise UsageError(
                f"replace_stride_with_dilation is {list(dilated)}; it takes None or {len(row.depths) - 1} values, "
                f"one for each stage after the first"
            )
        return build(
            row,
            zero_init_residual=zero_init_residual,
            norm_layer=norm_layer,
            classes=num_classes,
            groups=groups,
            width_per_group=width_per_group,
            dilated=tuple(dilated or ()),
        )

    construct.__name__ = construct.__qualname__ = name
    construct.__doc__ = f"""{name}: {row.layers} layers, {row.parameters:,} parameters, {row.macs() / 1e9:.2f} GMACs.

    Arguments are torchvision's; `replace_stride_with_dilation` works in every block. `progress` is accepted for its
    callers' sake. Raises UsageError for `pretrained=True`, with what to do instead, and for what can't be built.
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

"""The blocks of "Identity Mappings in Deep Residual Networks" (He et al. 2016b, arXiv:1603.05027).

The convolutions are those of Fig. 5 of the first paper. Normalisation and ReLU come before each convolution. There is
no ReLU after the addition, so the shortcuts pass the signal on unchanged.
"""

from typing import ClassVar

from torch import Tensor, nn

from resnetkit.models.blocks import BasicBlock, Bottleneck


class PreBasicBlock(BasicBlock):
    """Two 3×3 convolutions, each after its normalisation and ReLU, and a shortcut (2016b, Fig. 4e)."""

    relu1_in_place: ClassVar[bool] = False  # in place, after an identity as norm_layer, it would change the shortcut

    @staticmethod
    def normalised(conv: nn.Conv2d) -> int:
        """Channels of the normalisation that belongs to a convolution."""
        return conv.in_channels

    @property
    def last_layer(self) -> nn.Module:
        """The last layer whose `weight` scales the residual before the addition."""
        return self.conv2

    def activate(self, x: Tensor) -> Tensor:
        """Normalise the input and apply the ReLU: the same shape."""
        return self.relu1(self.bn1(x))

    def residual(self, x: Tensor) -> Tensor:
        """F of the activated map: shape (n, planes, ⌈h / stride⌉, ⌈w / stride⌉), before the addition."""
        x = self.relu(self.bn2(self.conv1(x)))
        x = self.conv2(self.blur(x))
        return self.drop_path(self.se(x))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.residual(self.activate(x)) + self.downsample(x)


class PreBottleneck(Bottleneck):
    """Convolutions of 1×1, 3×3 and 1×1, each after its normalisation and ReLU, and a shortcut."""

    relu1_in_place: ClassVar[bool] = False  # in place, after an identity as norm_layer, it would change the shortcut

    @staticmethod
    def normalised(conv: nn.Conv2d) -> int:
        """Channels of the normalisation that belongs to a convolution."""
        return conv.in_channels

    @property
    def last_layer(self) -> nn.Module:
        """The last layer whose `weight` scales the residual before the addition."""
        return self.conv3

    def activate(self, x: Tensor) -> Tensor:
        """Normalise the input and apply the ReLU: the same shape."""
        return self.relu1(self.bn1(x))

    def residual(self, x: Tensor) -> Tensor:
        """F of the activated map: shape (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉), before the addition."""
        x = self.relu2(self.bn2(self.conv1(x)))
        x = self.relu(self.bn3(self.conv2(x)))
        x = self.conv3(self.blur(x))
        return self.drop_path(self.se(x))

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return self.residual(self.activate(x)) + self.downsample(x)


class SharedPreBasicBlock(PreBasicBlock):
    """A PreBasicBlock whose shortcut, too, starts after the first ReLU.

    It is used where dimensions change, and as the first block if there is no pooling before it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        x = self.activate(x)
        return self.residual(x) + self.downsample(x)


class SharedPreBottleneck(PreBottleneck):
    """A PreBottleneck whose shortcut, too, starts after the first ReLU, in the same blocks as SharedPreBasicBlock."""

    def forward(self, x: Tensor) -> Tensor:
        """(n, inplanes, h, w) to (n, 4 · planes, ⌈h / stride⌉, ⌈w / stride⌉)."""
        x = self.activate(x)
        return self.residual(x) + self.downsample(x)

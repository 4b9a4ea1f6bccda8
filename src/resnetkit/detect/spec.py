"""A detector as data, without torch: `DetectorSpec`, and the table `DETECTORS` of the variants."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal

from resnetkit.errors import UsageError

HeadName = Literal["fpn", "c4"]
ANCHOR_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector has around its trunk. Raises UsageError for a detector that can't be built.

    Sizes are in pixels of the resized picture. The defaults are torchvision's.
    """

    head: HeadName = "fpn"
    """fpn: a feature pyramid (arXiv:1612.03144), and two fully connected layers for each region. c4: the paper's
    appendix: regions are pooled from the last map but one, and the trunk's last stage is the head of each region."""
    first_level: int = 2
    """fpn: the first stage whose map is in the pyramid, by its name: 2 for c2, of stride 4; 3 for c3, of stride 8."""
    width: int = 256
    """fpn: channels of each map of the pyramid."""
    hidden: int = 1024
    """fpn: outputs of the fully connected layers."""
    head_convolutions: int = 0
    """fpn: 3×3 convolutions before the fully connected layers, of which there is then one (torchvision's v2: 4)."""
    rpn_convolutions: int = 1
    """3×3 convolutions of the region proposal network (torchvision's v2: 2)."""
    context: bool = False
    """Whether the features of the whole picture are joined to those of each region, before class and box are
    predicted (arXiv:1512.03385, appendix B, "global context")."""
    norm: Literal["none", "frozen"] = "none"
    """Normalisation in the pyramid and the convolutions of the head: none, or the fixed affine layer that
    torchvision's v2 has in evaluation."""
    norm_eps: float = 1e-5
    """Epsilon of the trunk's fixed normalisation; 0 in torchvision's first COCO weights."""
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
    """Square roots of the areas of the anchors, for each map that has proposals: with fpn, those of the pyramid and a
    last one of half the resolution; with c4, one map."""
    anchor_ratios: tuple[float, ...] = ANCHOR_RATIOS
    """Height / width of the anchors, at every position for each size."""
    longest: int = 1333
    """Longest side of a picture after resizing. The shorter side is the size of the preprocessing."""
    antialias: bool = False
    """Whether pictures are resized with antialiasing. torchvision's weights were trained without."""
    proposals: tuple[int, int] = (1000, 1000)
    """Regions per picture that go to the head at most, in training (before sampling) and in prediction."""
    candidates: tuple[int, int] = (2000, 1000)
    """Best anchors of each map before non-maximum suppression, in training and in prediction."""
    rpn_iou: tuple[float, float] = (0.7, 0.3)
    """An anchor learns that there is an object if it overlaps one by the first value or more, or more than every other
    anchor does; that there is none, below the second; and nothing in between. The paper has 0.7 and 0.3."""
    rpn_sampled: int = 256
    """Anchors per picture in the loss of the region proposal network."""
    regions_sampled: int = 512
    """Regions per picture in the loss of the head."""
    score_threshold: float = 0.05
    """Detections with a lower probability are left out."""
    nms_iou: float = 0.5
    """Of two detections of a class with a higher intersection over union, the less probable one is left out."""
    most_detections: int = 100
    """Detections per picture at most."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "anchor_sizes", tuple(tuple(map(float, sizes)) for sizes in self.anchor_sizes))
        for name in ("anchor_ratios", "proposals", "candidates", "rpn_iou"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.head not in ("fpn", "c4"):
            raise UsageError(f"`head` is {self.head!r}; choose fpn or c4")
        counts = ("width", "hidden", "rpn_convolutions", "longest", "rpn_sampled", "regions_sampled", "most_detections")
        for name in counts:
            if getattr(self, name) < 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        if not 2 <= self.first_level <= 5:
            raise UsageError(f"`first_level` is {self.first_level}; it must be from 2 to 5")
        if any(not sizes or min(sizes) <= 0 for sizes in self.anchor_sizes) or min(self.anchor_ratios, default=0) <= 0:
            raise UsageError("anchors need a size over 0 for every map, and ratios over 0")
        if len({len(sizes) for sizes in self.anchor_sizes}) != 1:
            raise UsageError(
                "`anchor_sizes` must have the same number of sizes for every map, since one head reads all"
            )
        if len(self.rpn_iou) != 2 or not 0 < self.rpn_iou[1] <= self.rpn_iou[0] < 1:
            raise UsageError(
                f"`rpn_iou` is {list(self.rpn_iou)}; give the overlap of an object, and a lower one of background"
            )
        for name in ("score_threshold", "nms_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"`{name}` is {getattr(self, name)}; it must be from 0 to 1")

    @property
    def anchors_per_position(self) -> int:
        """Number of anchors at each position of a map."""
        return len(self.anchor_sizes[0]) * len(self.anchor_ratios)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values, for `from_dict`."""
        return {name: _as_list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DetectorSpec":
        """Return the spec with these fields, as JSON values. Raises UsageError for unknown or wrong ones."""
        names = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - names):
            raise UsageError(f"detectors have no field {unknown[0]!r}")
        try:
            return cls(**values)
        except TypeError as error:
            raise UsageError(f"a detector's field has a wrong type: {error}") from error


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, tuple) else value


_FPN = DetectorSpec()
DETECTORS: dict[str, DetectorSpec] = {
    # torchvision's fasterrcnn_resnet50_fpn and fasterrcnn_resnet50_fpn_v2.
    "fpn": replace(_FPN, antialias=True),
    "fpn-v2": replace(_FPN, antialias=True, head_convolutions=4, rpn_convolutions=2, norm="frozen"),
    # For CPUs: a pyramid from stride 8 of half the width has a tenth of the multiplications of `fpn` around the trunk.
    # Anchors are 3.5 to 5 strides wide, and those that overlap an object by half learn it: with fewer strides and the
    # paper's 0.7, a small object has one anchor, and small objects of a rare class are not proposed for many steps.
    "fpn-small": replace(
        _FPN,
        antialias=True,
        first_level=3,
        width=128,
        hidden=512,
        anchor_sizes=((28.0, 40.0), (57.0, 80.0), (113.0, 160.0), (226.0, 320.0)),
        rpn_iou=(0.5, 0.3),
        longest=800,
        proposals=(500, 300),
        candidates=(1000, 600),
        regions_sampled=128,
        score_threshold=0.01,
    ),
    # Appendix A: conv1 to conv4 are shared, 300 proposals, conv5 is the head of each region.
    "c4": replace(
        _FPN,
        antialias=True,
        head="c4",
        anchor_sizes=((32.0, 64.0, 128.0, 256.0, 512.0),),
        proposals=(2000, 300),
        candidates=(12000, 6000),
        regions_sampled=128,
    ),
}
"""The variants by name."""


def find_detector(name: str) -> DetectorSpec:
    """Return the detector called `name` in DETECTORS. Raises UsageError with the nearest name if there is none."""
    if name in DETECTORS:
        return DETECTORS[name]
    near = get_close_matches(name, DETECTORS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(DETECTORS)}"
    raise UsageError(f"`detector` is {name!r}; {hint}")

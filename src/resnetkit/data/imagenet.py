"""ImageNet's classes by their WordNet numbers, n01440764 to n15075141, the names in its own folders and lists."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

WNIDS = Path(__file__).parent / "wnids.txt"
"""The 1,000 of ILSVRC 2012, a line each. Published weights number the classes in this order, which is alphabetical."""
LANDMARKS = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 498: "cinema", 999: "toilet"}
"""Classes whose names begin alike in torchvision, timm and Keras, by their index in that order."""


@cache
def wnid_places() -> Mapping[str, int]:
    """The index of each WordNet number among the 1,000 classes."""
    return {wnid: place for place, wnid in enumerate(WNIDS.read_text(encoding="ascii").split())}


def are_imagenet(classes: Sequence[str]) -> bool:
    """Whether these class names are ImageNet's 1,000, in the order that published weights have."""
    return len(classes) == len(wnid_places()) and all(
        classes[place].lower().replace("_", " ").startswith(name) for place, name in LANDMARKS.items()
    )

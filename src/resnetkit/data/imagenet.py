"""ImageNet's classes and their WordNet numbers, n01440764 to n15075141, which are the names of its class folders."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

WNIDS = Path(__file__).parent / "wnids.txt"
"""File of the 1,000 WordNet numbers of ILSVRC 2012, one per line, sorted: the order of classes in published weights."""
LANDMARKS = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 498: "cinema", 999: "toilet"}
"""Index of a class in that order -> the beginning of its name, which torchvision, timm and Keras have in common."""


@cache
def wnid_places() -> Mapping[str, int]:
    """Return the index, 0 to 999, of each WordNet number."""
    return {wnid: place for place, wnid in enumerate(WNIDS.read_text(encoding="ascii").split())}


def are_imagenet(classes: Sequence[str]) -> bool:
    """Whether class names are ImageNet's 1,000, in the order of published weights. Only the LANDMARKS are compared."""
    return len(classes) == len(wnid_places()) and all(
        classes[place].lower().replace("_", " ").startswith(name) for place, name in LANDMARKS.items()
    )

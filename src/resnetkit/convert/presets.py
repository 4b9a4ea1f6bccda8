"""Preprocessings and class names by name, and the short text form of a preprocessing."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from resnetkit.data.published.cifar_archives import CIFARS
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError

IMAGENET = Preprocess(size=224, resize=256)
PREPROCESSES: dict[str, Preprocess] = {
    # torchvision's first weights, and most other projects
    "imagenet": IMAGENET,
    # torchvision's second weights of ResNet-50 and deeper
    "imagenet-v2": replace(IMAGENET, resize=232),
    # Microsoft's weights on the Hugging Face Hub
    "imagenet-bicubic": replace(IMAGENET, interpolation="bicubic"),
    # Caffe's means without scaling, for the paper's own weights and Keras' weights; here for pixels from 0 to 1
    "caffe": replace(IMAGENET, mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255,) * 3),
    # CIFAR with ImageNet's means, as in akamaster/pytorch_resnet_cifar10
    "cifar-imagenet": Preprocess(size=32),
    # CIFAR with its own means, and the mean of its pictures' standard deviations: chenyaofo/pytorch-cifar-models
    "cifar10": Preprocess(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Preprocess(size=32, mean=(0.5070, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2761)),
}
CLASS_LISTS = ("imagenet", *CIFARS)
GRAMMAR = "NAME, NAME,field=value,... or field=value,...; lists with colons: mean=0.5:0.5:0.5"


def parse_preprocess(text: str | Preprocess) -> Preprocess:
    """Parse `imagenet`, `imagenet,size=288`, `size=32,mean=0.5:0.5:0.5,std=1:1:1`, or a JSON object of fields.

    Raises UsageError for an unknown name or field, and for a value that a preprocessing can't have.
    """
    if isinstance(text, Preprocess):
        return text
    if text.lstrip().startswith("{"):
        try:
            return Preprocess.from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"`preprocess` is not valid JSON ({error}); write {GRAMMAR}") from None
    first, *settings = (part.strip() for part in text.split(","))
    fields: dict[str, Any] = {}
    if "=" in first:
        settings = [first, *settings]
    elif first in PREPROCESSES:
        fields = PREPROCESSES[first].to_dict()
    else:
        near = get_close_matches(first, PREPROCESSES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known names: {', '.join(PREPROCESSES)}."
        raise UsageError(f"`preprocess` {first!r} is unknown; {hint} Or write {GRAMMAR}")
    changed: set[str] = set()
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"`preprocess`: {setting!r} is not of the form field=value; write {GRAMMAR}")
        if name in changed:
            raise UsageError(f"`preprocess` contains {name} twice; give it once")
        changed.add(name)
        fields[name] = _value(name, value)
    return Preprocess.from_dict(fields)


def _value(name: str, text: str) -> Any:
    try:
        if name in ("mean", "std"):
            return [float(number) for number in text.split(":")]
        return int(text) if name in ("size", "resize") else text
    except ValueError:
        form = "numbers with colons: 0.5:0.5:0.5" if name in ("mean", "std") else "a whole number"
        raise UsageError(f"`preprocess`: {name} is {text!r}; it must be {form}") from None


def class_names(classes: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Return class names in the order of the logits, from a list, one of CLASS_LISTS, or a file.

    A file contains one name per line or JSON: a list of names, an object from class numbers (from 0) to names, or a
    config.json with a list or object of this kind as id2label or label_names. ImageNet has two classes "crane": if a
    name occurs twice, the second becomes "crane 2". Raises UsageError if a name occurs three times, if a name or the
    list is empty, and for a file that can't be read.
    """
    if not isinstance(classes, str | Path):
        return names_in(classes, where="`classes`")
    path = Path(classes)
    if str(classes) in CIFARS:
        return CIFARS[str(classes)].classes
    if str(classes) == "imagenet":
        from resnetkit.models.published import imagenet_classes

        return imagenet_classes()
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "not text in UTF-8"
        raise UsageError(
            f"`classes` {path}: {said}; give {', '.join(CLASS_LISTS)}, or a file with one name per line"
        ) from None
    where = f"`classes` {path}"
    if text.lstrip()[:1] not in ("[", "{"):
        return names_in([name for name in text.splitlines() if name.strip()], where=where)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: not valid JSON ({error})") from None
    return names_in(found, where=where)


def names_in(found: Any, *, where: str) -> tuple[str, ...]:
    """Return the class names in a list, or in an object that `class_names` accepts; `where` begins the UsageError."""
    if isinstance(found, Mapping):
        found = found.get("id2label") or found.get("label_names") or found
    if isinstance(found, Mapping):
        by_number = {str(key): name for key, name in found.items()}
        found = [by_number.get(str(index)) for index in range(len(by_number))]
    found = list(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes) else [None]
    if not all(isinstance(name, str) for name in found):
        raise UsageError(
            f"{where}: it must contain one name per line, a JSON list of names, or an object from numbers (from 0) to "
            "names"
        )
    times: Counter[str] = Counter()
    names: list[str] = []
    for name in map(str.strip, found):
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name} {times[name]}")
    if not names or not all(times):
        raise UsageError(f"{where}: {'an empty name' if names else 'no names'}; give one name for each class")
    often, most = times.most_common(1)[0]
    if most > 2 or len(set(names)) != len(names):
        said = f"{often!r} occurs {most} times" if most > 2 else "some names occur twice, and with a number as well"
        raise UsageError(f"{where}: {said}; give each class a different name")
    return tuple(names)

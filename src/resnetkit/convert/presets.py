"""Preprocessing and class names, which tensors don't tell: as rows, and in a short text form."""

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
    # torchvision's first weights, and most others
    "imagenet": IMAGENET,
    # torchvision's second weights of ResNet-50 and deeper
    "imagenet-v2": replace(IMAGENET, resize=232),
    # Microsoft's on the Hugging Face Hub
    "imagenet-bicubic": replace(IMAGENET, interpolation="bicubic"),
    # Caffe's means and no scale, as the authors' own weights and Keras' have them; here on a scale of 0 to 1
    "caffe": replace(IMAGENET, mean=(123.68 / 255, 116.779 / 255, 103.939 / 255), std=(1 / 255,) * 3),
    # CIFAR with ImageNet's means, as akamaster/pytorch_resnet_cifar10
    "cifar-imagenet": Preprocess(size=32),
    # CIFAR with its own means, and the mean of its pictures' standard deviations, as chenyaofo/pytorch-cifar-models
    "cifar10": Preprocess(size=32, mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010)),
    "cifar100": Preprocess(size=32, mean=(0.5070, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2761)),
}
CLASS_LISTS = ("imagenet", *CIFARS)
GRAMMAR = "NAME, NAME,field=value,... or field=value,...; lists with colons: mean=0.5:0.5:0.5"


def parse_preprocess(text: str | Preprocess) -> Preprocess:
    """Read `imagenet`, `imagenet,size=288`, `size=32,mean=0.5:0.5:0.5,std=1:1:1`, or a JSON object of fields.

    Raises UsageError for an unknown name or field and for what no preprocessing can be.
    """
    if isinstance(text, Preprocess):
        return text
    if text.lstrip().startswith("{"):
        try:
            return Preprocess.from_dict(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise UsageError(f"`preprocess` is no JSON ({error}); write {GRAMMAR}") from None
    first, *settings = (part.strip() for part in text.split(","))
    fields: dict[str, Any] = {}
    if "=" in first:
        settings = [first, *settings]
    elif first in PREPROCESSES:
        fields = PREPROCESSES[first].to_dict()
    else:
        near = get_close_matches(first, PREPROCESSES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(PREPROCESSES)}."
        raise UsageError(f"`preprocess` {first!r} is unknown; {hint} Or write {GRAMMAR}")
    changed: set[str] = set()
    for setting in settings:
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise UsageError(f"`preprocess`: {setting!r} is no field=value; write {GRAMMAR}")
        if name in changed:
            raise UsageError(f"`preprocess` has {name} twice; give it once")
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
        raise UsageError(f"`preprocess`: {name} is {text!r}; it takes {form}") from None


def class_names(classes: str | Path | Sequence[str]) -> tuple[str, ...]:
    """Class names in the order of the logits: a list, one of CLASS_LISTS, or a file.

    A file has a name on each line, or is JSON: a list of names, an object whose keys are the classes' numbers, or a
    config.json with one of these as id2label or label_names. Of a name that is there twice, as "crane" is among
    ImageNet's, the second becomes "crane 2"; three times are a mistake. Raises UsageError.
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
            f"`classes` {path}: {said}; give {', '.join(CLASS_LISTS)}, or a file with a name on each line"
        ) from None
    where = f"`classes` {path}"
    if text.lstrip()[:1] not in ("[", "{"):
        return names_in([name for name in text.splitlines() if name.strip()], where=where)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: no JSON ({error})") from None
    return names_in(found, where=where)


def names_in(found: Any, *, where: str) -> tuple[str, ...]:
    """Class names out of a list, or of an object as `class_names` takes it; `where` begins the UsageError."""
    if isinstance(found, Mapping):
        found = found.get("id2label") or found.get("label_names") or found
    if isinstance(found, Mapping):
        by_number = {str(key): name for key, name in found.items()}
        found = [by_number.get(str(index)) for index in range(len(by_number))]
    found = list(found) if isinstance(found, Iterable) and not isinstance(found, str | bytes) else [None]
    if not all(isinstance(name, str) for name in found):
        raise UsageError(
            f"{where}: neither names nor a JSON list of them, nor an object with the numbers from 0 as keys"
        )
    times: Counter[str] = Counter()
    names: list[str] = []
    for name in map(str.strip, found):
        times[name] += 1
        names.append(name if times[name] == 1 else f"{name} {times[name]}")
    if not names or not all(times):
        raise UsageError(f"{where}: {'an empty name' if names else 'no names'}; give one for each class")
    often, most = times.most_common(1)[0]
    if most > 2 or len(set(names)) != len(names):
        said = f"{often!r} is there {most} times" if most > 2 else "some names are there twice, and numbered too"
        raise UsageError(f"{where}: {said}; give each class a name of its own")
    return tuple(names)

"""Find class names, a measured accuracy and the convolution with the stride in a checkpoint's values."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from resnetkit.convert.presets import names_in
from resnetkit.errors import UsageError
from resnetkit.models.geometry import StridedKernel

DEEPEST = 4
"""Number of levels of nested values that are searched. Lightning's hyperparameters may contain a configuration."""
CLASS_LISTS = ("classes", "class_names", "label_names", "labels", "class_list", "names", "vocab", "categories")
OFTEN_OTHERS = ("labels", "names", "categories")
"""Names in CLASS_LISTS that can also have another meaning: a list of the wrong length is ignored."""
TO_NUMBERS = ("class_to_idx", "class_to_index", "label2id", "label_to_idx")
"""Names of dictionaries from class names to numbers. FROM_NUMBERS are dictionaries from numbers to class names."""
FROM_NUMBERS = ("idx_to_class", "index_to_class", "id2label", "idx_to_label", "idx2label")
ACCURACIES = re.compile(r"(best_|test_|val_|valid_)*(prec|acc|accuracy|top|prec@|acc@)_?1?")
"""Names of accuracies: best_prec1, acc, val_acc1, best_accuracy, top1."""


class ClassNames(NamedTuple):
    """Class names in a file."""

    names: tuple[str, ...]
    place: str
    """Their nested name in the file: `hyper_parameters.classes`."""


class Stated(NamedTuple):
    """An error that a file contains, mostly as an accuracy."""

    error_percent: float
    """100 minus the accuracy in percent."""
    place: str
    """Its nested name in the file: `best_prec1`."""


def class_names_in(
    objects: Mapping[str, object], classes: int | None, *, where: str, strict: bool
) -> ClassNames | None:
    """Return the list of `classes` class names in `objects`; None if there is no list of this length.

    `where` names the file in errors. Raises UsageError if several lists of this length differ and, with `strict`, if
    all lists have another length.
    """
    found: list[ClassNames] = []
    for place, name, value in _walk(objects):
        if (names := _names(name, value)) is not None:
            found.append(ClassNames(names, place))
    fitting = [names for names in found if len(names.names) == classes]
    sure = [names for names in found if names.place.rpartition(".")[2].lower() not in OFTEN_OTHERS]
    if strict and sure and classes and not fitting:
        counts = ", ".join(f"{len(names.names):,} in {names.place}" for names in sure[:3])
        raise UsageError(
            f"{where} contains class names ({counts}), but {classes:,} outputs; give {classes:,} names as `classes`"
        )
    if len({names.names for names in fitting}) > 1:
        places = " and ".join(names.place for names in fitting[:3])
        raise UsageError(f"{where} contains several lists of class names, in {places}; give `classes`")
    return fitting[0] if fitting else None


def stated_error(objects: Mapping[str, object]) -> Stated | None:
    """Return the error that follows from an accuracy in `objects`; a best accuracy is preferred. None without one."""
    found: list[Stated] = []
    for place, name, value in _walk(objects):
        fits = ACCURACIES.fullmatch(name.lower()) and isinstance(value, int | float) and not isinstance(value, bool)
        if fits and isinstance(value, int | float) and 0 < value <= 100:
            found.append(Stated(100 * (1 - value) if value <= 1 else 100 - value, place))
    return min(found, key=lambda stated: "best" not in stated.place) if found else None


def strided_kernel(objects: Mapping[str, object]) -> StridedKernel | None:
    """Return the bottleneck's strided convolution by OpenMMLab's configuration (text or values); None without one."""
    for _, name, value in _walk(objects):
        if name == "style" and value in ("caffe", "pytorch"):
            return "1x1" if value == "caffe" else "3x3"
        if isinstance(value, str) and (found := re.search(r"style\s*=\s*['\"](caffe|pytorch)['\"]", value)):
            return "1x1" if found[1] == "caffe" else "3x3"
    return None


def _walk(objects: Mapping[str, object], place: str = "", depth: int = 1) -> Iterator[tuple[str, str, object]]:
    """Yield (nested name, last part of the name, value) for every value; outer values come before inner values."""
    for name, value in objects.items():
        yield f"{place}{name}", name.rpartition(".")[2], value
    if depth < DEEPEST:
        for name, value in objects.items():
            if isinstance(value, Mapping):
                inner = {str(key): item for key, item in value.items()}
                yield from _walk(inner, f"{place}{name}.", depth + 1)


def _names(name: str, value: object) -> tuple[str, ...] | None:
    """Return the class names in the value `name`; None if it contains no class names."""
    name = name.lower()
    if name in TO_NUMBERS or (
        name in CLASS_LISTS and isinstance(value, Mapping) and _all_numbers(list(value.values()))
    ):
        value = {number: label for label, number in value.items()} if isinstance(value, Mapping) else None
    elif name not in (*CLASS_LISTS, *FROM_NUMBERS):
        return None
    if isinstance(value, Mapping):
        value = {str(key): label for key, label in value.items() if key != "class"}
    elif not isinstance(value, Sequence) or isinstance(value, str):
        return None  # often the number of classes, not their names
    try:
        return names_in(value, where=name)
    except UsageError:
        return None


def _all_numbers(values: object) -> bool:
    return all(isinstance(value, int) for value in values) if isinstance(values, list) else False

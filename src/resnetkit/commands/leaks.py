"""Which pictures of an evaluation leak: they are the same as, or alike to, pictures that trained the model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resnetkit.progress import bar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from resnetkit.data.parts import Part
    from resnetkit.data.samples import Dataset

MOST_LOOKED_AT = 20_000
"""Of more pictures, training pictures included, evaluate does not look for leaks; data check does."""


def leaking_pictures(
    dataset: "Dataset", part: "Part", trained_on: Mapping[str, Any], *, workers: int
) -> "NDArray[np.bool_] | None":
    """Return which pictures of a part leak, bool (n,).

    None where the training pictures are not in the data, are in memory, or are too many to look at each time.
    """
    from resnetkit.data.duplicates import leaking
    from resnetkit.data.parts import is_own

    train, samples = dataset.train, part.samples
    known = train is not None and train.paths and samples.paths and part.name in ("val", "test")
    if not known or train is None or len(train) + len(samples) > MOST_LOOKED_AT or not is_own(dataset, trained_on):
        return None
    with bar("looking for leaks", len(train) + len(samples)) as advance:
        return leaking(samples, [train], workers=max(1, workers), advance=advance)


def sections_on_data(dataset: "Dataset", *, workers: int) -> dict[str, str]:
    """Return the parts of the report on leaks and shortcuts: all parts of the data are looked at."""
    from resnetkit.data.first_look import FirstLook
    from resnetkit.finetune.trust import look_sections

    with bar("looking for shortcuts", sum(map(len, dataset.parts.values()))) as advance:
        return look_sections(dataset, FirstLook(workers=workers, advance=advance))

"""How long a rung takes, whether there is time for it, and whether it is likely to help."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, sqrt
from typing import Any

from resnetkit.models.spec import ModelSpec
from resnetkit.train.recipe import Recipe

LEAST_EPOCHS, ENOUGH_PICTURES, MOST_EPOCHS = 3, 700, 20
"""A rung that begins with a fitted head takes 3 epochs, and with few pictures as many as it takes to see 700, at most
20."""
SMALL_SET = 4000
"""With fewer training pictures, batches are small: more steps for the same work."""
STAGE_SHARE = 0.35
"""With `minutes`: the share of the time after the first rung that the second one gets, if there is a third."""
STEP_COST, VALIDATION_COST = 4.6, 1.4
"""Times of a training step and of a validation for a picture, in times of its features: OpenVINO computes these, and
torch the others. Measured for ResNet-18 on two cores with AVX2."""
CLEARLY_HALVED = 16
"""Mistakes of which half are fewer by two standard deviations."""
PLAIN_FROM = 1000
"""From so many training pictures on, the third rung is plain fine-tuning; see `rungs.third_rung`."""
PLAIN_EPOCHS = 4
"""Epochs of plain fine-tuning; with `minutes`, fewer than LEAST_EPOCHS are not worth it, since the head is new."""
LEAST_FOR_CROPS = 128
"""Networks for smaller pictures get no smaller crops."""


@dataclass(frozen=True)
class Costs:
    """Estimated seconds, from the time that the features of a picture took."""

    stage_epoch: float
    """An epoch of the last stage."""
    whole_epoch: float
    """An epoch of the whole network."""
    validation: float
    """A validation."""
    least_epochs: int = 1
    """The fewest epochs of the whole network that may help."""

    @property
    def least_whole(self) -> float:
        """The shortest third rung that may help, with a validation."""
        return self.least_epochs * self.whole_epoch + self.validation

    @classmethod
    def estimate(cls, spec: ModelSpec, *, size: int, feature_seconds: float, train: int, val: int) -> "Costs":
        """Return the costs for so many pictures of `size` × `size`; `feature_seconds` is that of one picture."""
        macs = spec.macs(size)
        before = replace(spec, depths=spec.depths[:-1]).macs(size) if len(spec.depths) > 1 else 0
        whole = STEP_COST * feature_seconds * train
        scale, until = early_crops(train, size)
        small = 1 - until * (1 - scale**2)
        least = LEAST_EPOCHS if trained_plainly(train) else 1
        return cls(whole * (1 - before / macs), whole * small, VALIDATION_COST * feature_seconds * val, least)


def epochs(pictures: int) -> float:
    """Return the epochs of a rung without `minutes`."""
    return float(min(MOST_EPOCHS, max(LEAST_EPOCHS, ceil(ENOUGH_PICTURES / pictures))))


def trained_plainly(pictures: int) -> bool:
    """Return whether the third rung is plain fine-tuning with so many training pictures."""
    return pictures >= PLAIN_FROM


def whole_epochs(pictures: int) -> float:
    """Return the epochs of the third rung without `minutes`."""
    return float(PLAIN_EPOCHS) if trained_plainly(pictures) else epochs(pictures)


def early_crops(pictures: int, size: int) -> tuple[float, float]:
    """Return the size of the third rung's crops at first, as a share of `size`, and until which share of the run.

    Crops that are much smaller would not be what the first rung's head was fitted for, so a new head learns better from
    them.
    """
    if size < LEAST_FOR_CROPS:
        return 1.0, 0.6
    return (0.57, 0.7) if trained_plainly(pictures) else (0.75, 0.6)


def small_batches(recipe: Recipe, pictures: int, rate: float, asked: frozenset[str]) -> dict[str, Any]:
    """Return batch size and learning rate for so many pictures, as far as a person did not give them.

    `rate` is for batches of 16; it grows with the batch.
    """
    size = recipe.batch_size if "batch_size" in asked else 16 if pictures < SMALL_SET else 32
    values = {"batch_size": min(size, pictures), "lr": rate * size / 16}
    return {name: value for name, value in values.items() if name not in asked}


def stage_seconds(left: float, costs: Costs | None, *, pictures: int, more: bool) -> float:
    """Return the seconds for the second rung, of the `left` ones; with `more`, a third rung may follow.

    If the time does not suffice for both, the second one gets all of it: it needs less for the same gain.
    """
    if costs is None:
        return STAGE_SHARE * left if more else left
    enough = epochs(pictures) * costs.stage_epoch
    whole = costs.least_whole + costs.validation
    if more and left - enough >= whole + costs.validation:
        left = min(max(STAGE_SHARE * left, enough + costs.validation), left - whole)
    most = MOST_EPOCHS * costs.stage_epoch
    return max(min(left - costs.validation, most), 1.0)


def why_no_stage(left: float, costs: Costs | None, *, wrong: int = 0, behind: int = 0) -> str | None:
    """Return why the second rung is not likely to help in the seconds that are left; None if it is.

    The head gets `wrong` validation pictures wrong, and the best regression `behind` more. The second rung begins with
    a regression, since discriminants leave it nothing to learn; so it does not reach one that is clearly better.
    """
    if costs is not None and left < costs.stage_epoch + costs.validation:
        return f"no rung stage: an epoch of it takes about {costs.stage_epoch:.0f} s, and {max(left, 0):.0f} s are left"
    if behind > sqrt(wrong + behind):
        return (
            f"no rung stage: the head's discriminants get {wrong} validation pictures wrong, and the regression with "
            f"which it would begin {wrong + behind}"
        )
    return None


def why_no_whole(
    rungs: Sequence[Mapping[str, Any]],
    left: float,
    costs: Costs | None,
    *,
    pictures: int,
    bounded: bool,
    no_stage: bool = False,
) -> str | None:
    """Return why the third rung is not likely to help; None if it is.

    `rungs` are those that are done, `pictures` is the number of validation pictures, and `bounded` says that the run
    has `minutes`. `no_stage` says that the second rung was left out because it would not have helped. With few mistakes
    left, even half of them would be no clear gain, so it follows only where the second rung gained much, or where a
    person gave the time for it.
    """
    if costs is not None and left < costs.least_whole:
        seconds = f"{costs.least_epochs * costs.whole_epoch:.0f} s, and {max(left, 0):.0f} s are left"
        if costs.least_epochs == 1:
            return f"no rung all: an epoch of it takes about {seconds}"
        return f"no rung all: the first {costs.least_epochs} epochs of plain fine-tuning take about {seconds}"
    if bounded and costs is not None and left >= LEAST_EPOCHS * costs.whole_epoch + 2 * costs.validation:
        return None
    errors = {row["rung"]: row["top1_error_percent"] for row in rungs}
    head, stage = errors.get("head"), errors.get("stage")
    stage = head if no_stage and stage is None else stage
    if head is None or stage is None:
        return None
    before, after = (round(pictures * error / 100) for error in (head, stage))
    left_over = min(before, after)
    # The standard deviation of n rare mistakes is √n: half of 16 or more is clear.
    if left_over >= CLEARLY_HALVED or before - after >= sqrt(before):
        return None
    return (
        f"no rung all: {left_over} of {pictures} validation pictures are wrong, too few to show that it helps, and no "
        "clear gain came before; `rung` all trains the whole network"
    )

"""How long a rung takes, and whether it is likely to help: pure functions."""

from dataclasses import replace

import pytest

from resnetkit.finetune.lengths import Costs, epochs, small_batches, stage_seconds, why_no_stage, why_no_whole
from resnetkit.models.spec import SPECS
from resnetkit.train.recipe import RECIPES

COSTS = Costs(stage_epoch=10.0, whole_epoch=40.0, validation=3.0)


def rungs(head: float, stage: float) -> list[dict[str, object]]:
    return [{"rung": "head", "top1_error_percent": head}, {"rung": "stage", "top1_error_percent": stage}]


def test_few_pictures_get_more_epochs() -> None:
    assert [epochs(pictures) for pictures in (10, 100, 245, 1651, 10**6)] == [20, 7, 3, 3, 3]


def test_rates_are_in_proportion_to_batches() -> None:
    recipe = RECIPES["folder"]
    assert small_batches(recipe, 245, 0.01, frozenset()) == {"batch_size": 16, "lr": 0.01}
    assert small_batches(recipe, 10_000, 0.01, frozenset()) == {"batch_size": 32, "lr": 0.02}
    assert small_batches(recipe, 10, 0.01, frozenset())["batch_size"] == 10
    assert small_batches(recipe.replace(batch_size=8), 245, 0.01, frozenset({"batch_size", "lr"})) == {}


def test_costs_follow_the_multiplications() -> None:
    spec = SPECS["resnet18"]
    costs = Costs.estimate(spec, size=224, feature_seconds=0.02, train=500, val=100)
    # layer4 has 0.411 of 1.814 GMACs, and 60 % of the steps of the whole network are on (168 / 224)² of the pixels.
    assert costs.stage_epoch == pytest.approx(4.6 * 0.02 * 500 * 0.411 / 1.814, rel=0.01)
    assert costs.whole_epoch == pytest.approx(4.6 * 0.02 * 500 * 0.7375)
    # From 1,000 pictures on, 70 % of the steps are on 0.57² of the pixels.
    many = Costs.estimate(spec, size=224, feature_seconds=0.02, train=1000, val=100)
    assert many.whole_epoch == pytest.approx(4.6 * 0.02 * 1000 * (0.3 + 0.7 * 0.57**2))
    assert costs.validation == pytest.approx(1.4 * 0.02 * 100)
    assert (costs.least_epochs, many.least_epochs) == (1, 3)
    small = Costs.estimate(spec, size=112, feature_seconds=0.02, train=1000, val=100)
    assert small.whole_epoch == pytest.approx(4.6 * 0.02 * 1000), "no smaller crops"


def test_plain_fine_tuning_needs_time_for_three_epochs() -> None:
    costs = replace(COSTS, least_epochs=3)
    assert stage_seconds(158, costs, pictures=1000, more=True) == 155  # not enough for both
    assert stage_seconds(159, costs, pictures=1000, more=True) == 30
    for seconds in range(159, 1000):
        left = seconds - stage_seconds(seconds, costs, pictures=1000, more=True) - costs.validation
        why = why_no_whole(rungs(0.3, 0.3), left, costs, pictures=411, bounded=True)
        assert why is None, "the time was kept for it"
    why = why_no_whole(rungs(6.3, 6.3), 122, costs, pictures=411, bounded=True)
    assert why == "no rung all: the first 3 epochs of plain fine-tuning take about 120 s, and 122 s are left"
    assert why_no_whole(rungs(6.3, 6.3), 126, costs, pictures=411, bounded=True) is None


def test_a_short_time_is_for_the_second_rung_alone() -> None:
    assert stage_seconds(50, COSTS, pictures=1000, more=True) == 47  # three epochs of it, and none of the whole
    assert stage_seconds(80, COSTS, pictures=1000, more=True) == 30
    assert stage_seconds(400, COSTS, pictures=1000, more=True) == 0.35 * 400 - 3
    assert stage_seconds(400, COSTS, pictures=1000, more=False) == 200  # 20 epochs at most
    assert stage_seconds(100, None, pictures=1000, more=True) == 35
    assert why_no_stage(12, COSTS) == "no rung stage: an epoch of it takes about 10 s, and 12 s are left"
    assert why_no_stage(13, COSTS) is None
    assert why_no_stage(1, None) is None


def test_discriminants_that_are_clearly_better_leave_the_second_rung_nothing_to_reach() -> None:
    why = why_no_stage(float("inf"), COSTS, wrong=9, behind=18)
    assert why == (
        "no rung stage: the head's discriminants get 9 validation pictures wrong, and the regression with which it "
        "would begin 27"
    )
    assert why_no_stage(float("inf"), COSTS, wrong=6, behind=2) is None
    alone = rungs(2.19, 2.19)[:1]
    told = why_no_whole(alone, float("inf"), COSTS, pictures=411, bounded=False, no_stage=True)
    assert told is not None
    assert "9 of 411 validation pictures are wrong, too few" in told
    gained = why_no_whole(rungs(3.0, 1.0), float("inf"), COSTS, pictures=411, bounded=False, no_stage=True)
    assert gained is None, "a second rung that was taken counts"
    many = rungs(20, 20)[:1]
    assert why_no_whole(many, float("inf"), COSTS, pictures=411, bounded=False, no_stage=True) is None


@pytest.mark.parametrize(
    ("head", "stage", "pictures", "goes_on"),
    [(5.23, 4.58, 153, False), (6.3, 6.3, 411, True), (3.0, 1.0, 411, True), (3.0, 2.7, 411, False)],
)
def test_the_third_rung_follows_where_a_gain_can_be_seen(
    head: float, stage: float, pictures: int, goes_on: bool
) -> None:
    why = why_no_whole(rungs(head, stage), float("inf"), COSTS, pictures=pictures, bounded=False)
    assert (why is None) == goes_on
    assert why_no_whole(rungs(head, stage), 300, COSTS, pictures=pictures, bounded=True) is None, "there is time"
    short = why_no_whole(rungs(head, stage), 42, COSTS, pictures=pictures, bounded=True)
    assert short == "no rung all: an epoch of it takes about 40 s, and 42 s are left"


def test_without_a_second_rung_the_third_one_follows() -> None:
    alone = rungs(5.0, 4.0)[:1]
    assert why_no_whole(alone, float("inf"), None, pictures=100, bounded=False) is None

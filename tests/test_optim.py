"""Schedules and plans are pure functions, so the tests contain their values."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from resnetkit.train.computing.optim import learning_rate, make_optimizer, plateaus
from resnetkit.train.pace import Pace, Plan
from resnetkit.train.recipe import RECIPES, Recipe


def test_paper_schedule_drops_at_32k_and_48k():
    recipe, plan = RECIPES["paper-cifar10"], Plan.of_length(64_000)
    rates = {step: learning_rate(recipe, plan.progress(step)) for step in (0, 31_999, 32_000, 47_999, 48_000, 63_999)}
    assert rates == pytest.approx({0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001})


def test_one_cycle_rises_and_falls_in_straight_lines():
    recipe = Recipe(lr=0.4, peak_at=0.25)
    rates = [learning_rate(recipe, progress) for progress in (0, 0.125, 0.25, 0.625, 0.999)]
    assert rates == pytest.approx([0.004, 0.2, 0.4, 0.2, 0.004])


def test_cosine_and_constant():
    cosine = replace(Recipe(), schedule="cosine", lr=1.0)
    assert [learning_rate(cosine, p) for p in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert learning_rate(replace(Recipe(), schedule="constant", lr=0.3), 0.9) == 0.3


def test_plateau_counts_evaluations_without_a_new_lowest_error():
    assert plateaus([50, 40, 41, 40, 39], patience=2) == 1  # 41 and 40 are not under 40
    assert plateaus([50, 40, 30, 20], patience=2) == 0
    assert plateaus([50, 50, 50, 50, 50], patience=2) == 2
    recipe = replace(RECIPES["paper-imagenet"], lr=0.1)
    assert learning_rate(recipe, 0.5, drops=2) == pytest.approx(0.001)


def test_plan_keeps_its_past_and_moves_its_end():
    plan = Plan.of_length(100).until(60, step=20)
    assert plan.progress(10) == pytest.approx(0.1)
    assert plan.progress(20) == pytest.approx(0.2)
    assert plan.progress(40) == pytest.approx(0.6)
    assert plan.progress(60) == 1.0
    assert plan.total_steps == 60
    assert Plan.of_length(100).until(5, step=20).total_steps == 21, "a run never ends in the past"


def test_pace_fits_a_run_whose_speed_changes():
    """A simulated machine: 0.1 s a step, 0.2 s after a minute; an evaluation of 2 s every 100 steps."""
    pace = Pace(3, steps_per_evaluation=100, evaluation_share=5.0)
    plan, step, clock, evaluation, rates = Pace.UNKNOWN, 0, 0.0, 0.0, []
    while step < plan.total_steps:
        rates.append(plan.progress(step))
        seconds = 0.1 if clock < 60 else 0.2
        clock, step = clock + seconds, step + 1
        pace.step(seconds)
        plan = pace.fit(plan, step, elapsed_seconds=clock, evaluation_seconds=evaluation)
        if step % 100 == 0:
            evaluation = 2.0
            clock += evaluation
    clock += 1  # for the curves and the report; the last evaluation was counted
    assert 0.95 * 180 <= clock <= 1.02 * 180
    assert rates == sorted(rates)
    assert rates[0] < 1e-6
    assert rates[-1] > 0.99


def test_pace_is_not_fooled_by_a_slow_first_step_at_full_size():
    """The first of the later steps takes 40 of 300 seconds, as with a compiler."""
    pace = Pace(5, steps_per_evaluation=10**6, evaluation_share=0.0, early_until=0.5, early_cost=0.5)
    plan, step, clock, compiled, totals = Pace.UNKNOWN, 0, 0.0, False, []
    while step < plan.total_steps:
        before = plan.progress(step)
        seconds = 0.05 if before < 0.5 else 0.1 if compiled else 40.0
        compiled = before >= 0.5
        clock, step = clock + seconds, step + 1
        pace.step(seconds, before)
        plan = pace.fit(plan, step, elapsed_seconds=clock, evaluation_seconds=0.0)
        totals += [plan.total_steps] if compiled else []
    assert 0.95 * 300 <= clock <= 1.01 * 300
    assert min(totals) > 0.9 * totals[-1], "the schedule does not rush and then wait"


@pytest.mark.parametrize("early_seconds", [0.05, 0.07])
def test_pace_knows_that_early_steps_cost_less(early_seconds):
    """Half of the steps are expected to take 0.6 of the later steps' 0.1 s, and take a little less or more."""
    pace = Pace(3, steps_per_evaluation=200, evaluation_share=5.0, early_until=0.5, early_cost=0.6)
    plan, step, clock, early = Pace.UNKNOWN, 0, 0.0, 0
    while step < plan.total_steps:
        before = plan.progress(step)
        seconds = early_seconds if before < 0.5 else 0.1
        early += before < 0.5
        clock, step = clock + seconds, step + 1
        pace.step(seconds, before)
        plan = pace.fit(plan, step, elapsed_seconds=clock, evaluation_seconds=0.5)
        if step % 200 == 0:
            clock += 0.5
    assert 0.95 * 180 <= clock + 2 <= 1.02 * 180
    assert 0.42 < early / step < 0.58, "about half of the steps, not of the time, which would be 0.6 or more"


def test_pace_of_a_resumed_run_is_not_fooled_by_a_slow_first_step():
    """Half of 1,080 steps of 0.15 s are done; a new process takes a minute for its first step, as a compiler does."""
    pace = Pace(3, steps_per_evaluation=350, evaluation_share=20.0)
    plan, step, clock = Plan.of_length(1080), 540, 92.0
    while step < plan.total_steps:
        before = plan.progress(step)
        seconds = 60.0 if step == 540 else 0.15
        clock, step = clock + seconds, step + 1
        pace.step(seconds)
        plan = pace.fit(plan, step, elapsed_seconds=clock, evaluation_seconds=3.0)
        assert plan.progress(step) - before < 0.02, "no jump of the schedule"
    assert 0.9 * 180 <= clock + 2 * 3 + 1 <= 1.02 * 180


def test_pace_with_evaluations_that_cost_more_than_training():
    """Small sets: an epoch of 2 steps of 0.05 s, and an evaluation, with saving, of 0.3 s."""
    pace = Pace(0.3, steps_per_evaluation=2, evaluation_share=0.5)
    plan, step, clock, evaluation, rates, evaluated = Pace.UNKNOWN, 0, 0.0, 0.0, [], []
    while step < plan.total_steps:
        rates.append(plan.progress(step))
        clock, step = clock + 0.05, step + 1
        pace.step(0.05)
        plan = pace.fit(plan, step, elapsed_seconds=clock, evaluation_seconds=evaluation)
        if pace.evaluates(plan, step, evaluation_seconds=evaluation):
            evaluated.append(step)
            evaluation = 0.3
            clock += evaluation
    assert 0.95 * 18 <= clock + 1 <= 1.02 * 18
    assert rates[-1] > 0.95, "the schedule comes to its end"
    assert 5 <= len(evaluated) <= 0.2 * 18 / 0.3 + 1, "a fifth of the time goes into them, beside the last one"
    assert all(number % 2 == 0 for number in evaluated[:-1]), "at the end of an epoch"
    assert evaluated[-1] == step
    assert evaluated[-1] - evaluated[-2] > 5, "none shortly before the last one"


@pytest.mark.parametrize("guess", [0.4, 1.2, 6.0])
def test_pace_of_few_slow_steps(guess):
    """A minute of steps that take 1.2 s, after a guess of what they take; the evaluation takes 12 s."""
    pace = Pace(1, steps_per_evaluation=7, evaluation_share=0.0, step_seconds=guess)
    clock, step, rates, evaluated = 6.0, 0, [], []
    plan = pace.begin(elapsed_seconds=clock, evaluation_seconds=12.0)
    while step < plan.total_steps:
        rates.append(plan.progress(step))
        clock, step = clock + 1.2, step + 1
        pace.step(1.2)
        plan = pace.fit(plan, step, elapsed_seconds=clock, evaluation_seconds=12.0)
        if pace.evaluates(plan, step, evaluation_seconds=12.0):
            evaluated.append(step)
            clock += 12.0
    assert 57 <= clock + Pace.CLOSING_SECONDS <= 61.5
    assert evaluated == [step], "there is no time for another one"
    assert rates == sorted(rates)
    assert rates[-1] > 0.9


def test_pace_of_an_evaluation_that_takes_the_whole_time():
    pace = Pace(1, steps_per_evaluation=7, evaluation_share=0.0, step_seconds=1.0)
    plan = pace.begin(elapsed_seconds=5.0, evaluation_seconds=100.0)
    pace.step(1.0)
    plan = pace.fit(plan, 1, elapsed_seconds=6.0, evaluation_seconds=100.0)
    assert plan.total_steps <= 2


def test_pace_ends_at_once_when_the_time_is_over():
    pace = Pace(0.1, steps_per_evaluation=10, evaluation_share=1.0)
    pace.step(20.0)
    assert pace.fit(Pace.UNKNOWN, 1, elapsed_seconds=21.0, evaluation_seconds=0.0).total_steps == 2


def test_groups_of_weight_decay():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    modern = make_optimizer(net, Recipe(weight_decay=0.5))
    assert [(len(g["params"]), g["weight_decay"]) for g in modern.param_groups] == [(1, 0.5), (3, 0.0)]
    paper = make_optimizer(net, Recipe(weight_decay=0.5, decay_norm_and_bias=True))
    assert [(len(g["params"]), g["weight_decay"]) for g in paper.param_groups] == [(4, 0.5)]
    net[0].requires_grad_(False)
    assert sum(len(g["params"]) for g in make_optimizer(net, Recipe()).param_groups) == 2


def test_one_step_is_nesterov_sgd():
    weight = nn.Parameter(torch.tensor([[1.0]]))
    net = nn.Module()
    net.weight = weight
    optimizer = make_optimizer(net, Recipe(lr=0.1, momentum=0.9, weight_decay=0.0))
    for _ in range(2):
        weight.grad = torch.tensor([[1.0]])
        optimizer.step()
    # v1 = 1, w1 = 1 - 0.1 (1 + 0.9 * 1); v2 = 1.9, w2 = w1 - 0.1 (1 + 0.9 * 1.9)
    assert weight.item() == pytest.approx(1 - 0.19 - 0.271)

"""How far a run is, as a share of its length, and how a run on the clock finds its length."""

import math
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """The progress of a run, from 0 to 1, at each step: straight lines through `knots`.

    A knot is (step, progress); the last one is (total steps, 1). A run of known length has two knots. A run with
    `minutes` gets new knots as the measured time of a step changes.
    """

    knots: tuple[tuple[int, float], ...]

    @classmethod
    def of_length(cls, total_steps: int) -> "Plan":
        """Return the plan of a run whose length is known."""
        return cls(((0, 0.0), (total_steps, 1.0)))

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.knots[-1][0]

    def progress(self, step: int) -> float:
        """Return the share of the run that is done after `step` steps, 0 to 1."""
        for (first, start), (last, end) in zip(self.knots, self.knots[1:], strict=False):
            if step < last:
                return start + (end - start) * (step - first) / (last - first)
        return 1.0

    def until(self, total_steps: int, *, step: int) -> "Plan":
        """Return the same plan up to `step`, and from there a straight line to the new end."""
        behind = tuple(knot for knot in self.knots if knot[0] < step)
        return Plan((*behind, (step, self.progress(step)), (max(total_steps, step + 1), 1.0)))

    def as_part_of(self, total_steps: int, *, step: int, progress: float) -> "Plan":
        """Return the same plan up to `step`, and from there that of a longer run, which is at `progress` at this step.

        Progress jumps at `step`: the earlier steps keep the progress of the shorter run that they were part of.
        """
        behind = tuple(knot for knot in self.knots if knot[0] < step)
        before = (*behind, (step, self.progress(step))) if step else ()
        return Plan((*before, (step, progress), (max(total_steps, step + 1), 1.0)))


@dataclass(frozen=True)
class Cost:
    """The time of training and evaluation on this machine."""

    step_seconds: float
    """Seconds for a step of the optimiser."""
    picture_seconds: float
    """Seconds for evaluating one picture."""


class Pace:
    """Fits a run into a given time: it averages the time of a step, and moves the end of the plan accordingly."""

    UNKNOWN = Plan.of_length(1_000_000_000)
    """The plan while the time of a step is not known; its progress stays practically zero."""
    LATELY = 200
    """Number of steps over which the time of a step is averaged."""
    CLOSING_SECONDS = 1.5
    """Time that is reserved for the curves and the report at the end."""
    EVALUATIONS = 0.2
    """Largest share of the time for the evaluations before the last one."""

    def __init__(
        self,
        minutes: float,
        *,
        steps_per_evaluation: int,
        evaluation_share: float,
        early_until: float = 0.0,
        early_cost: float = 1.0,
        step_seconds: float = 0.0,
    ) -> None:
        """Make the pace of a run of `minutes`.

        `evaluation_share` is the first guess of an evaluation's time, as a multiple of a training step's. Until the
        share `early_until` of the run is done, a step is assumed to take `early_cost` times as long as a later one;
        afterwards the later steps are measured. `step_seconds` is the first guess for a later step; 0 is no guess.
        """
        self.budget_seconds = 60 * minutes
        self.steps_per_evaluation = steps_per_evaluation
        self.evaluation_share = evaluation_share
        self.early_until, self.early_cost = early_until, early_cost
        self.step_seconds = step_seconds
        self._lately: deque[float] = deque(maxlen=self.LATELY)
        self._steps = 0
        self._early = early_until > 0
        self._fitted: tuple[int, float] | None = None

    def begin(self, *, elapsed_seconds: float, evaluation_seconds: float) -> Plan:
        """Return the plan before the first step, from the guess of a step's time; UNKNOWN if there is no guess."""
        if not self.step_seconds:
            return Pace.UNKNOWN
        self._fitted = 0, elapsed_seconds
        return Plan.of_length(max(self._steps_left(0.0, elapsed_seconds, evaluation_seconds), 1))

    def step(self, seconds: float, progress: float = 0.0) -> None:
        """Record how long the training step after `progress` took.

        The times of the first two steps of a process, and of the first two steps at full size, are soon discarded:
        these steps allocate memory and may compile.
        """
        early = progress < self.early_until
        if early != self._early:
            self._early, self._steps = early, 0
        if self._steps in (0, 2):
            self._lately.clear()
        self._lately.append(seconds)
        self._steps += 1
        mean = sum(self._lately) / len(self._lately)
        self.step_seconds = mean / self.early_cost if self._early else mean

    def fit(self, plan: Plan, step: int, *, elapsed_seconds: float, evaluation_seconds: float) -> Plan:
        """Return the plan for the rest of the run after `step` steps and `elapsed_seconds`; `plan` if it still fits.

        `evaluation_seconds` is the time of the last evaluation; 0 if there was no evaluation yet.
        """
        known = plan != Pace.UNKNOWN
        if self._fitted is None:
            self._fitted = step, elapsed_seconds
        if known:
            due = (
                step - self._fitted[0] >= 0.02 * plan.total_steps
                or elapsed_seconds - self._fitted[1] >= 0.02 * self.budget_seconds
            )
        else:
            due = sum(self._lately) >= 0.01 * self.budget_seconds
        # If steps are long, three of them must be enough.
        measured = self._steps >= 5 or (self._steps >= 3 and sum(self._lately) >= 0.02 * self.budget_seconds)
        over = elapsed_seconds + evaluation_seconds + self.CLOSING_SECONDS >= self.budget_seconds
        if not (due and measured) and not over:
            return plan
        self._fitted = step, elapsed_seconds
        total = step + self._steps_left(plan.progress(step), elapsed_seconds, evaluation_seconds)
        if known and abs(total - plan.total_steps) <= 0.01 * plan.total_steps:
            return plan
        return plan.until(total, step=step)

    def evaluates(self, plan: Plan, step: int, *, evaluation_seconds: float) -> bool:
        """Return whether the network is evaluated after `step`: at the end, and before as often as time allows."""
        every = self._steps_between(evaluation_seconds)
        if step >= plan.total_steps:
            return True
        # If evaluations are rare, there is no evaluation shortly before the last one.
        return step % every == 0 and (every == self.steps_per_evaluation or plan.total_steps - step >= every / 2)

    def _steps_between(self, evaluation_seconds: float) -> int:
        """Return the steps from one evaluation to the next, a multiple of `steps_per_evaluation`."""
        if not self.step_seconds:
            return self.steps_per_evaluation
        least_seconds = evaluation_seconds * (1 - self.EVALUATIONS) / self.EVALUATIONS
        return self.steps_per_evaluation * max(
            1, math.ceil(least_seconds / (self.steps_per_evaluation * self.step_seconds))
        )

    def _steps_left(self, progress: float, elapsed_seconds: float, evaluation_seconds: float) -> int:
        """Return how many steps fit into the rest of the time."""
        evaluation_seconds = evaluation_seconds or self.evaluation_share * self.step_seconds
        left = self.budget_seconds - elapsed_seconds - evaluation_seconds - self.CLOSING_SECONDS
        # The share `early_share` of the remaining steps takes less time than the others.
        early_share = max(self.early_until - progress, 0.0) / max(1 - progress, 1e-9)
        mean_seconds = self.step_seconds * (1 - early_share * (1 - self.early_cost))
        return max(int(left / (mean_seconds + evaluation_seconds / self._steps_between(evaluation_seconds))), 0)

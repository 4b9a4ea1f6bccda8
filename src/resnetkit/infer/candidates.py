"""The ways to compute a model that a Predictor tries, the best first. Imports torch only if there may be a GPU."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from resnetkit.display import shell
from resnetkit.errors import ExportError, ModelFileError, UsageError
from resnetkit.infer.choice import Choice, Goal, Output, choose, installed
from resnetkit.infer.graphs import has_cached_graph
from resnetkit.infer.tuning.record import find_tuned
from resnetkit.infer.unloaded import UnloadedModel
from resnetkit.machine import read_machine
from resnetkit.modelfile import Model

T = TypeVar("T")
BATCH_SIZE = 32
"""Pictures in a batch, if neither an argument nor tuning gives their number."""
GPU_FILES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""A Linux machine with a GPU that torch can use has one of these files."""


def best_device() -> str:
    """Return cuda where torch can use a GPU, else cpu. Imports torch only on a machine that may have a GPU."""
    if sys.platform == "darwin" or (sys.platform == "linux" and not any(map(os.path.exists, GPU_FILES))):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def candidates(
    model: Model | UnloadedModel,
    stated: Mapping[str, Any],
    *,
    device: str,
    goal: Goal,
    output: Output,
    may_export: bool,
) -> list[Choice]:
    """Return the choices to try for `model`, the best first; never empty.

    `stated` are the fields of Choice that the caller fixed. First comes the choice of tuning for `goal`, then OpenVINO
    in float32 if it is installed and has a graph for `output` in the cache (with `may_export`, the graph is made), then
    torch in float32 if it is installed. On another device than the CPU, only torch is tried.

    Warns about a result of tuning that is not used, or that comes from another machine. Raises UsageError if the fields
    in `stated` do not go together.
    """
    rules: list[Choice] = []
    if isinstance(model, UnloadedModel) and device == "cpu":
        if tuned := _tuned_choice(model, goal):
            rules.append(tuned)
        if (may_export or has_cached_graph(model, "openvino", output)) and installed("openvino"):
            rules.append(Choice("openvino", batch_size=BATCH_SIZE))
    if installed("torch") or not rules:
        rules.append(Choice("torch", batch_size=BATCH_SIZE))
    return choose(stated, rules)


def first_usable(choices: Sequence[Choice], use: Callable[[Choice], T], *, stacklevel: int) -> tuple[Choice, T]:
    """Return the first choice that can be used, and what `use` returned for it.

    `use` raises ExportError, ModelFileError or UsageError for a choice that can't be used; then a warning says so, at
    the caller `stacklevel` frames up, and the next one is tried. The error of the last one is raised.
    """
    *others, last = choices
    for choice, following in zip(others, choices[1:], strict=True):
        try:
            return choice, use(choice)
        except (ExportError, ModelFileError, UsageError) as error:
            instead = f"{following.backend} {following.precision}"
            warnings.warn(
                f"{choice.backend} {choice.precision} can't be used, so {instead} is used: {error}",
                stacklevel=1 + stacklevel,
            )
    return last, use(last)


def _tuned_choice(model: UnloadedModel, goal: Goal) -> Choice | None:
    """Return the choice of tuning for `goal`, with a warning if it was measured elsewhere; None if it can't be used."""
    if not (found := find_tuned(model)):
        return None
    tuned, place = found
    again = f"resnetkit tune {shell(model.name)}"
    choice = tuned.choice(goal)
    if not choice:
        _warn(f"{place.file} contains no choice that can be used here; measure again: {again}")
        return None
    if not installed(choice.backend):
        _warn(f"{place.file} names {choice.backend}, which is not installed: pip install 'resnetkit[export]'")
        return None
    if tuned.fits(machine := read_machine()):
        return choice
    # Sums in 8-bit integers that were exact on that machine may overflow on this one: see quantize.EXACT.
    unsafe = choice.precision == "int8" and tuned.machine.get("instructions") != list(machine.instructions)
    _warn(
        f"{place.file} was measured on another machine ({tuned.machine.get('processor')}, "
        f"{tuned.machine.get('allowed_cores')} cores){', so its int8 graph is not used' if unsafe else ''}; "
        f"measure on this machine: {again}"
    )
    return None if unsafe else choice


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)  # the caller of Predictor()

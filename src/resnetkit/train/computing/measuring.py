"""The fastest way to compute a training step on this machine: measured once, and kept in the cache."""

import copy
import hashlib
import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from resnetkit.files import cache_folder, write_whole
from resnetkit.kernels.library import status
from resnetkit.machine import read_machine
from resnetkit.models.resnet import ResNet
from resnetkit.models.spec import ModelSpec
from resnetkit.train.recipe import Recipe

WORTH_OPERATIONS, WORTH_MINUTES = 5e12, 0.75
"""Work of the shortest run that is worth a measurement: half a minute to a minute on two cores."""
MEASURED_OPERATIONS = 8e9
"""Work of a measured step: the pictures are fewer than in a batch if a batch takes more."""
LEAST_PICTURES = 8  # in a measured step, since some costs are the same for any number of pictures
SECONDS = 1.0  # after this time, there is no further round
ROUNDS = 5  # at the most
CLEARLY = 1.05  # the first way is chosen unless another one is faster by this factor, since times scatter

Forward = Callable[[Tensor], Tensor]
Make = Callable[[str, ResNet], Forward]
"""Returns the forward pass of a network, computed in the way of this name."""

logger = logging.getLogger(__name__)


def worth_measuring(spec: ModelSpec, recipe: Recipe, *, size: int, steps: int | None) -> bool:
    """Return whether a run is so long that it is worth a second to find the fastest way."""
    if recipe.minutes is not None:
        return recipe.minutes >= WORTH_MINUTES
    pictures = (steps or 0) * recipe.batch_size * recipe.accumulate
    return pictures * _operations(spec, size) >= WORTH_OPERATIONS


def fastest(ways: Sequence[str], make: Make, net: ResNet, *, batch_size: int, size: int, setting: str) -> str:
    """Return the way with the shortest forward and backward pass; the first one if no other is clearly faster.

    `net` is not changed. `setting` names everything else on which `make` depends. The times are read from the cache if
    they have been measured on this machine, with these versions, this number of threads and these arguments.
    """
    pictures = min(batch_size, max(LEAST_PICTURES, int(MEASURED_OPERATIONS / _operations(net.spec, size))))
    facts = (
        *(read_machine().processor, torch.get_num_threads(), version("torch"), torch.backends.cpu.get_cpu_capability()),
        *(status(), str(net.spec), [parameter.requires_grad for parameter in net.parameters()]),
        *(pictures, size, setting, list(ways)),
    )
    name = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]
    path = cache_folder() / "computing" / f"{name}.json"
    seconds = _read(path, ways)
    if seconds is None:
        seconds = measure(ways, make, net, pictures=pictures, size=size)
        _write(path, seconds)
    logger.debug("seconds for a step of %d pictures: %s", pictures, seconds)
    best = min(seconds, key=lambda way: seconds[way])
    return best if seconds[ways[0]] > CLEARLY * seconds[best] else ways[0]


def measure(ways: Sequence[str], make: Make, net: ResNet, *, pictures: int, size: int) -> dict[str, float]:
    """Return the seconds of a forward and backward pass in each way: the median of rounds in turn."""
    generator = torch.Generator().manual_seed(0)  # the global one decides the run's numbers
    images = torch.randn(pictures, net.spec.in_channels, size, size, generator=generator)
    labels = torch.zeros(pictures, dtype=torch.int64)
    twins = {way: copy.deepcopy(net) for way in ways}  # frozen parts stay in evaluation mode
    forwards = {way: make(way, twin) for way, twin in twins.items()}
    taken: dict[str, list[float]] = {way: [] for way in ways}
    began = time.perf_counter()
    for number in range(1 + ROUNDS):
        for way in ways:
            start = time.perf_counter()
            loss = F.cross_entropy(forwards[way](images).float(), labels)
            loss.backward()
            taken[way].append(time.perf_counter() - start)
            twins[way].zero_grad(set_to_none=True)
        if number and time.perf_counter() - began > SECONDS:
            break
    return {way: statistics.median(times[1:]) for way, times in taken.items()}  # the first one allocates memory


def _operations(spec: ModelSpec, size: int) -> float:
    """Return the operations of a step on one picture: forward, and twice as many for the two gradients."""
    return 3 * 2 * spec.macs(size)


def _read(path: Path, ways: Sequence[str]) -> dict[str, float] | None:
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))
        return {way: float(seconds[way]) for way in ways}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, seconds: dict[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(seconds))
    except OSError as error:  # it is measured again the next time
        logger.debug("%s", error)

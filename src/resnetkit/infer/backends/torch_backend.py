"""A network computed by torch itself, as it is or compiled."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from resnetkit.errors import UsageError
from resnetkit.forked import apart
from resnetkit.infer.backends.backend import Pixels, Values, in_order
from resnetkit.infer.choice import Choice, Output
from resnetkit.infer.network import ExportedNetwork, folded
from resnetkit.modelfile import Model
from resnetkit.precision import exact_float32

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class TorchBackend:
    """A network with its batch normalisation folded, in channels_last, on the CPU or a GPU."""

    def __init__(self, choice: Choice, model: Model, *, output: Output = "logits", device: str = "cpu") -> None:
        """Copy the model's network. If `choice.threads` is not 0, it sets the threads of everything that torch does."""
        if choice.threads:
            torch.set_num_threads(choice.threads)
        self.choice = choice
        self.device = _device(device)
        net = folded(model.net).float()
        self._network = ExportedNetwork(net, model.header.preprocess, output=output, with_preprocess=False).to(
            self.device
        )
        self._dtype = DTYPES[choice.precision]
        net.to(self._dtype).to(memory_format=torch.channels_last)
        # The compiler folds and lays out weights that can't change any more. It takes many seconds for each shape, so
        # there is only one: batches are split and filled up to it.
        compiled = choice.backend == "inductor"
        self._batch_size = choice.batch_size if compiled else 0
        self._forward = (
            torch.compile(self._computed, dynamic=False, options={"freezing": True}) if compiled else self._computed
        )

    def __call__(self, pixels: Pixels) -> Values:
        """Compute one batch."""
        return apart(lambda: self._outputs(pixels))

    def _outputs(self, pixels: Pixels) -> Values:
        with torch.inference_mode(), exact_float32():
            inputs = torch.from_numpy(np.require(pixels, np.uint8, ["C", "W"])).to(self.device)
            if not self._batch_size:
                return self._forward(inputs).cpu().numpy()
            parts = [self._filled_up(part) for part in inputs.split(self._batch_size)]
            return torch.cat(parts).cpu().numpy()

    def stream(self, batches: Iterable[Pixels]) -> Iterator[Values]:
        """Compute batch after batch, and prepare the next one meanwhile."""
        return in_order(self, batches, at_a_time=1)

    def _computed(self, pixels: Tensor) -> Tensor:
        # Pixels have their channels last, which is channels_last memory: nothing is moved.
        return self._network(self._network.normalize(pixels).to(self._dtype)).float()

    def _filled_up(self, pixels: Tensor) -> Tensor:
        missing = self._batch_size - len(pixels)
        filled = functional.pad(pixels, (0, 0) * 3 + (0, missing)) if missing else pixels
        return self._forward(filled)[: len(pixels)].clone()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (
        RuntimeError,
        AssertionError,
    ) as error:  # RuntimeError in a forked process, too; AssertionError where torch has no CUDA
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"`device` is {name!r}, which torch can't use here ({reason}); resnetkit doctor says more"
        ) from error
    return device

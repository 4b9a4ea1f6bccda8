"""The trunk of a network, without its head: pixels to the features that are kept, by OpenVINO or by torch.

OpenVINO's graph is made directly from the modules. This takes a second; an export through ONNX takes
up to half a minute.
"""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.infer.backends.openvino_backend import openvino_core
from resnetkit.infer.choice import installed, usable_threads
from resnetkit.infer.network import folded
from resnetkit.models.resnet import ResNet
from resnetkit.precision import exact_float32


class Values(NamedTuple):
    """The features of n pictures."""

    pool: NDArray[np.float32]
    """float32 (n, channels): the mean of the last map over its positions, which is the head's input."""
    maps: NDArray[np.float16] | None
    """float16 (n, channels, h, w): the input of the last stage; None if it was not asked for."""


class Tail(nn.Module):
    """The parts of a network before its head, with two outputs: the last stage's input, and the mean of its map."""

    def __init__(self, net: ResNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map normalised images (n, channels, size, size) to a map (n, c, h, w) and features (n, channels)."""
        *before, last = self.net.stage_names
        maps = self.net.run(images, last=before[-1] if before else "stem")
        return maps, self.net.run(maps, first=last, last=last).mean((2, 3))


class Trunk:
    """A network without its head, which computes features of pictures. In float32, with frozen batch norm."""

    computed_by: str
    """openvino or torch, and the version: other ways give other last bits."""

    def __init__(
        self, net: ResNet, preprocess: Preprocess, *, device: str = "cpu", way: str | None = None, maps: bool = False
    ) -> None:
        """Prepare a copy of `net`; its own modules are not changed.

        `way` is openvino or torch; None is OpenVINO if it is installed, supports the network, and `device` is cpu.
        With `maps`, the input of the last stage is computed, too.
        """
        self.size, self.channels, self.maps = preprocess.size, preprocess.channels, maps
        tail = Tail(folded(net).float()).eval()
        graph = None
        if way == "openvino" or (way is None and device == "cpu" and installed("openvino")):
            graph = as_openvino(tail, preprocess, maps=maps)
        if graph is not None:
            self._compute: OpenVinoTrunk | TorchTrunk = OpenVinoTrunk(graph, maps=maps)
        else:
            self._compute = TorchTrunk(tail, preprocess, torch.device(device), maps=maps)
        self.computed_by = self._compute.name

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Generator[Values]:
        """Yield the features of each batch, in order: uint8 (n, size, size, channels).

        Meanwhile the next batch is prepared.
        """
        return self._compute.stream(batches)


class TorchTrunk:
    """The trunk by torch, in channels_last memory."""

    def __init__(self, tail: Tail, preprocess: Preprocess, device: torch.device, *, maps: bool) -> None:
        self.name = f"torch {torch.__version__} {device.type}"
        tail.net.to(memory_format=torch.channels_last)
        self.tail = tail.to(device)
        self.preprocess, self.device, self.maps = preprocess, device, maps

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Generator[Values]:
        """Yield the features of each batch."""
        for pixels in batches:
            images = torch.from_numpy(self.preprocess.normalize(pixels)).to(
                self.device, memory_format=torch.channels_last
            )
            with torch.inference_mode(), exact_float32():
                maps, pool = self.tail(images)
            yield Values(pool.cpu().numpy(), _halved(maps.cpu().numpy()) if self.maps else None)


class OpenVinoTrunk:
    """The trunk by OpenVINO: one picture in a request, as many requests at a time as there are threads.

    So a picture's features are the same to the bit whatever pictures are beside it. In a batch they are not: in some
    layers, OpenVINO divides the rows of all pictures together among its vectors.
    """

    def __init__(self, graph: Any, *, maps: bool) -> None:
        import openvino

        self.name = f"openvino {openvino.__version__}"
        streams = usable_threads()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": streams, "NUM_STREAMS": streams}
        self._network = openvino_core().compile_model(graph, "CPU", settings)
        self._tensor, self._maps = openvino.Tensor, maps
        self._idle = [self._network.create_infer_request() for _ in range(streams + 1)]

    def stream(self, batches: Iterable[NDArray[np.uint8]]) -> Generator[Values]:
        """Yield the features of each batch."""
        running: deque[tuple[Any, NDArray[np.uint8]]] = deque()
        sizes: deque[int] = deque()
        done: list[tuple[NDArray[np.float32], NDArray[np.float16] | None]] = []

        def finish_one() -> None:
            request, _ = running.popleft()
            request.wait()
            pool = request.get_output_tensor(0).data.copy()  # the request's next picture overwrites it
            maps = _halved(request.get_output_tensor(1).data) if self._maps else None
            self._idle.append(request)
            done.append((pool, maps))

        def complete() -> Iterator[Values]:
            while sizes and len(done) >= sizes[0]:
                size = sizes.popleft()
                pools, maps = zip(*done[:size], strict=True)
                del done[:size]
                yield Values(np.concatenate(pools), np.concatenate(maps) if self._maps else None)

        try:
            for pixels in batches:
                sizes.append(len(pixels))
                for picture in np.require(pixels, np.uint8, ["C", "W"]):
                    if not self._idle:
                        finish_one()
                    request = self._idle.pop()
                    request.set_input_tensor(self._tensor(picture[None], shared_memory=True))
                    request.start_async()
                    running.append((request, picture))
                yield from complete()
            while running:
                finish_one()
            yield from complete()
        finally:
            while running:
                finish_one()


def _halved(maps: NDArray[np.float32]) -> NDArray[np.float16]:
    """Round maps to float16, the nearest value or the largest one: values of a ReLU fit, and an odd one is cut off."""
    return np.minimum(maps, np.float32(np.finfo(np.float16).max)).astype(np.float16)


def as_openvino(tail: Tail, preprocess: Preprocess, *, maps: bool) -> Any | None:
    """Return OpenVINO's graph of a folded trunk, uint8 (1, size, size, channels) to pool and, if asked, maps.

    None for a network with modules that are not translated here (attention, blur, group norm, pre-activation).
    """
    if not _translatable(tail):
        return None
    openvino_core()
    import openvino
    from openvino import opset13 as ops

    size, channels = preprocess.size, preprocess.channels
    pixels = ops.parameter([1, size, size, channels], np.uint8, "pixels")
    mean, std = preprocess.mean_at(size, size), preprocess.std_at(size)
    white = ops.divide(ops.convert(pixels, "f32"), np.float32(255))
    normal = ops.divide(ops.subtract(white, mean.astype(np.float32)), std.astype(np.float32))
    images = ops.transpose(normal, np.array([0, 3, 1, 2]))
    values: dict[Any, Any] = {}
    results: list[Any] = []
    trace = _Leaves().trace(tail)
    for node in trace.nodes:
        match node.op:
            case "placeholder":
                values[node] = images
            case "call_module":
                values[node] = _translated(ops, tail.get_submodule(str(node.target)), values[node.args[0]])
            case "call_function":
                first, second = (values[argument] for argument in node.args)
                values[node] = ops.add(first, second)
            case "call_method":
                values[node] = ops.reduce_mean(values[node.args[0]], np.array([2, 3]), keep_dims=False)
            case _:
                results = [values[argument] for argument in node.args[0]]
    last_input, pool = results
    return openvino.Model([pool, last_input] if maps else [pool], [pixels], "trunk")  # pyrefly: ignore


class _Leaves(fx.Tracer):
    """Traces down to modules without children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node."""
        return not any(m.children())


def _translatable(tail: Tail) -> bool:
    """Whether `_translated` has every module between the images and the features, and every sum is one of two maps."""
    for node in _Leaves().trace(tail).nodes:
        if node.op == "call_module":
            module = tail.get_submodule(str(node.target))
            if isinstance(module, nn.Conv2d) and (module.padding_mode != "zeros" or isinstance(module.padding, str)):
                return False
            if not isinstance(module, nn.Conv2d | nn.ReLU | nn.MaxPool2d | nn.Identity):
                return False
            if isinstance(module, nn.MaxPool2d) and (module.ceil_mode or module.dilation != 1):
                return False
        known = {"call_function": ("add", "iadd"), "call_method": ("mean",)}.get(node.op)
        if known and getattr(node.target, "__name__", node.target) not in known:
            return False
    return True


def _translated(ops: Any, module: nn.Module, x: Any) -> Any:
    """Return the node of one module; its input is the node `x`."""
    match module:
        case nn.Conv2d():
            return _convolution(ops, module, x)
        case nn.ReLU():
            return ops.relu(x)
        case nn.MaxPool2d():
            kernel, stride, pad = (_pair(v) for v in (module.kernel_size, module.stride, module.padding))
            return ops.max_pool(x, stride, [1, 1], pad, pad, kernel, "floor", "explicit", "i64").output(0)
        case _:
            return x


def _convolution(ops: Any, conv: nn.Conv2d, x: Any) -> Any:
    weight = conv.weight.detach().numpy()
    stride, pad, dilation = (_pair(v) for v in (conv.stride, conv.padding, conv.dilation))
    if conv.groups > 1:
        grouped = weight.reshape(conv.groups, -1, *weight.shape[1:])
        y = ops.group_convolution(x, ops.constant(grouped), stride, pad, pad, dilation)
    else:
        y = ops.convolution(x, ops.constant(weight), stride, pad, pad, dilation)
    if conv.bias is None:
        return y
    return ops.add(y, ops.constant(conv.bias.detach().numpy().reshape(1, -1, 1, 1)))


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)

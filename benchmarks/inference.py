"""Prediction from decoded pictures to probabilities: ours against torchvision's eager networks and faster peers.

Every contender is a process that works on request and waits otherwise. They are measured in turn:
- eager: torchvision's network in float32, inference mode, with its usual transforms (Resize, CenterCrop, ToTensor,
  Normalize) and a softmax, at the number of threads and in the memory format that are measured to be the fastest here
  for that batch; "network alone" leaves transforms and softmax out;
- ours: `Predictor` on OpenVINO in float32, bfloat16 and int8 (made by `resnetkit tune`, which needs --photos);
- ours, small: the same, from pictures that need no resizing;
- bare: Predictor's backend alone, in a loop on prepared pixels;
- openvino: the network from OpenVINO's own converter and NNCF's mixed preset, in the loop of its benchmark_app, on
  prepared numbers; onnxruntime: the same in ONNX Runtime with its default options.
A call is one picture, or two batches of 16. At the end, eager and ours run while another process keeps one core busy.
Without --weights-dir, weights are random, which does not change the speed.

    python benchmarks/inference.py [--models resnet50 resnet18 ...] [--photos DIR] [--weights-dir DIR] [--rounds 5]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PRECISIONS = ("float32", "bfloat16", "int8")
CALIBRATION = 100  # pictures
LEAST_CALLS = 3
BATCHES = 2
"""Batches in a call, if a batch is more than one picture, for contenders that compute several batches at once."""


@dataclass(frozen=True)
class Task:
    """The settings of a measurement."""

    batch: int
    precision: str = "float32"
    way: str = ""
    """Variant of the contender: see its function."""
    threads: int = 0
    channels_last: bool = False

    @property
    def batches(self) -> int:
        """Batches in a call."""
        return BATCHES if self.batch > 1 else 1

    @property
    def pictures(self) -> int:
        """Pictures in a call."""
        return self.batch * self.batches


@dataclass(frozen=True)
class Measured:
    """The result of a measurement."""

    milliseconds: float
    """Time of a batch: the time of the median call, divided by its batches."""
    images_per_second: float


# The contenders: each returns a function that makes a call, without arguments, from a task.


def eager(folder: Path, model: Path) -> Callable[[Task], Callable[[], object]]:
    """The network of torchvision: way "" with transforms and softmax, "alone" without them."""
    import torch
    from PIL import Image

    from networks import eager_network, eager_transform

    pictures = list(np.load(folder / "pictures.npy"))
    net, transform = eager_network(model), eager_transform(model)

    def made(task: Task) -> Callable[[], object]:
        torch.set_num_threads(task.threads)
        form = torch.channels_last if task.channels_last else torch.contiguous_format
        net.to(memory_format=form)

        def batch(first: int):
            inputs = [transform(Image.fromarray(picture)) for picture in pictures[first : first + task.batch]]
            return torch.stack(inputs).contiguous(memory_format=form)

        firsts = range(0, task.pictures, task.batch)
        ready = batch(0)

        @torch.inference_mode()
        def call() -> object:
            if task.way == "alone":
                return [net(ready) for _ in firsts]
            return [net(batch(first)).softmax(dim=1) for first in firsts]

        return call

    return made


def ours(folder: Path, model: Path) -> Callable[[Task], Callable[[], object]]:
    """Predictor: way "" from pictures, "small" from pictures that need no resizing, "bare" for its backend alone."""
    from PIL import Image

    from resnetkit.infer.predictor import Predictor

    pictures = list(np.load(folder / "pictures.npy"))

    def made(task: Task) -> Callable[[], object]:
        goal = "latency" if task.batch == 1 else "throughput"
        predictor = Predictor(
            model, device="cpu", backend="openvino", precision=task.precision, batch_size=task.batch, goal=goal
        )
        chosen = [Image.fromarray(picture) for picture in pictures[: task.pictures]]
        if task.way == "bare":
            pixels = np.stack([predictor.preprocess.pixels(picture) for picture in chosen])
            ready = np.split(pixels, task.batches)
            return lambda: list(predictor.backend.stream(ready))
        small = [np.array(predictor.preprocess.resized(picture)) for picture in chosen]
        given = small if task.way == "small" else pictures[: task.pictures]
        return lambda: predictor(given if len(given) > 1 else given[0])

    return made


def openvino(folder: Path, model: Path) -> Callable[[Task], Callable[[], object]]:
    """OpenVINO in the way of benchmark_app: the latency hint for batch 1, else OpenVINO's number of requests."""
    import openvino as ov

    core = ov.Core()

    def made(task: Task) -> Callable[[], object]:
        network = core.read_model(folder / f"{'int8-' * (task.precision == 'int8')}plain.xml")
        size = network.input().partial_shape[3].get_length()
        network.reshape([task.batch, 3, size, size])
        options = {
            "PERFORMANCE_HINT": "LATENCY" if task.batch == 1 else "THROUGHPUT",
            "INFERENCE_PRECISION_HINT": "bf16" if task.precision == "bfloat16" else "f32",
        }
        compiled = core.compile_model(network, "CPU", options)
        inputs = np.random.default_rng(0).standard_normal((task.batch, 3, size, size), np.float32)
        requests = ov.AsyncInferQueue(compiled)

        def call() -> None:
            for _ in range(task.batches):
                requests.start_async({0: inputs}, share_inputs=True)
            requests.wait_all()

        return call

    return made


def onnxruntime(folder: Path, model: Path) -> Callable[[Task], Callable[[], object]]:
    """ONNX Runtime with default options."""
    import onnxruntime as ort

    session = ort.InferenceSession(folder / "plain.onnx", providers=["CPUExecutionProvider"])
    (wanted,) = session.get_inputs()

    def made(task: Task) -> Callable[[], object]:
        inputs = np.random.default_rng(0).standard_normal((task.batch, *wanted.shape[1:]), np.float32)
        return lambda: [session.run(None, {wanted.name: inputs}) for _ in range(task.batches)]

    return made


CONTENDERS = {"eager": eager, "ours": ours, "openvino": openvino, "onnxruntime": onnxruntime}


def serve(name: str, folder: Path, model: Path, seconds: float) -> None:
    """For each line of standard input, a task, measure for some seconds and print the result."""
    made = CONTENDERS[name](folder, model)
    calls: dict[Task, Callable[[], object]] = {}
    for line in sys.stdin:
        task = Task(**json.loads(line))
        if name == "eager" or task not in calls:  # the settings of eager change the whole process
            calls[task] = made(task)
        call = calls[task]
        call()
        took: list[float] = []
        began = time.perf_counter()
        while time.perf_counter() - began < seconds or len(took) < LEAST_CALLS:
            started = time.perf_counter()
            call()
            took.append(time.perf_counter() - started)
        result = Measured(1000 * statistics.median(took) / task.batches, task.pictures * len(took) / sum(took))
        print(json.dumps(vars(result)), flush=True)


class Contender:
    """A process that measures one contender on request."""

    def __init__(self, name: str, folder: Path, model: Path, seconds: float) -> None:
        """Start the process."""
        given = ["--one", name, "--folder", folder, "--file", model, "--seconds", seconds]
        self.process = subprocess.Popen(
            [sys.executable, __file__, *map(str, given)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, task: Task) -> Measured:
        """Return the measurement of a task."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(vars(task)), file=self.process.stdin, flush=True)
        return Measured(**json.loads(self.process.stdout.readline()))

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def prepare(folder: Path, model: Path, photos: Path | None) -> None:
    """Write the files of the faster peers: plain.onnx, plain.xml, and int8-plain.xml if there are photographs."""
    import openvino as ov
    import torch
    from PIL import Image

    from networks import eager_network, eager_transform

    net, transform = eager_network(model), eager_transform(model)
    pictures = [Image.fromarray(picture) for picture in np.load(folder / "pictures.npy")]
    example = transform(pictures[0])[None]
    batch = torch.export.Dim("batch")
    torch.onnx.export(net, (example,), folder / "plain.onnx", dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    plain = ov.convert_model(net, example_input=example, input=[-1, *example.shape[1:]])
    ov.save_model(plain, folder / "plain.xml", compress_to_fp16=False)
    if photos:
        import nncf

        data = nncf.Dataset(pictures, lambda picture: transform(picture)[None].numpy())
        quantized = nncf.quantize(plain, data, preset=nncf.QuantizationPreset.MIXED, subset_size=CALIBRATION)
        ov.save_model(quantized, folder / "int8-plain.xml", compress_to_fp16=False)


def without_int8(model: Path) -> str:
    """Return the reason why a model has no 8-bit integers; empty if it has them."""
    from resnetkit.errors import UsageError
    from resnetkit.infer.predictor import Predictor

    try:
        Predictor(model, device="cpu", backend="openvino", precision="int8")
    except UsageError as error:
        return str(error)
    return ""


@contextmanager
def busy_process() -> Iterator[None]:
    """Within the block, another process keeps a core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def best_settings(contender: Contender, batch: int, *, way: str = "") -> Task:
    """Return the task with the number of threads and the memory format that are fastest for eager."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = sorted({1, max(1, cores // 2), cores})
    tasks = [Task(batch, "float32", way, count, form) for count in threads for form in (False, True)]
    rates = {task: contender.measure(task).images_per_second for task in tasks}
    for task, rate in rates.items():
        print(f"  eager{way and f', network {way}'}, batch {batch}, {named_settings(task)}: {rate:.1f} images/s")
    return max(tasks, key=lambda task: rates[task])


def named_settings(task: Task) -> str:
    """Return a text such as `2 threads, channels_last`."""
    return f"{task.threads} threads, {'channels_last' if task.channels_last else 'contiguous'}"


def compare(folder: Path, model: Path, *, batch: int, precisions: list[str], rounds: int, seconds: float) -> None:
    """Measure every contender in turn, alone and then with a busy process; print medians and ratios."""
    processes = {name: Contender(name, folder, model, seconds) for name in CONTENDERS}
    print(f"\n{model.stem}, batch {batch}")
    whole, alone = (best_settings(processes["eager"], batch, way=way) for way in ("", "alone"))
    tasks = {"eager": ("eager", whole), "eager, network alone": ("eager", alone)}
    for precision in precisions:
        tasks |= {
            f"ours {precision}": ("ours", Task(batch, precision)),
            f"ours {precision}, small": ("ours", Task(batch, precision, "small")),
            f"bare {precision}": ("ours", Task(batch, precision, "bare")),
            f"openvino {precision}": ("openvino", Task(batch, precision)),
        }
    tasks["onnxruntime float32"] = ("onnxruntime", Task(batch))
    for process, task in tasks.values():  # compiled, warmed up
        processes[process].measure(task)
    quiet = in_turn(processes, tasks, rounds)
    for name, found in quiet.items():
        rates = [one.images_per_second for one in found]
        milliseconds = statistics.median(one.milliseconds for one in found)
        spread = f"from {min(rates):.1f} to {max(rates):.1f}"
        ratio = ratios(found, quiet["eager"])
        print(
            f"{name:23} {milliseconds:8.2f} ms, {statistics.median(rates):7.1f} images/s ({spread})"
            + (f"; {ratio} eager" if name != "eager" else f"; {named_settings(whole)}")
        )
    for precision in precisions:
        ours_ = quiet[f"ours {precision}"]
        print(
            f"ours {precision}: {ratios(ours_, quiet['eager, network alone'])} eager's network alone, "
            f"{ratios(ours_, quiet[f'bare {precision}'])} its bare backend "
            f"({ratios(quiet[f'ours {precision}, small'], quiet[f'bare {precision}'])} without resizing), "
            f"{ratios(ours_, quiet[f'openvino {precision}'])} OpenVINO's benchmark"
            + (f", {ratios(ours_, quiet['onnxruntime float32'])} ONNX Runtime" if precision == "float32" else "")
        )
    beside = {name: tasks[name] for name in ("eager", *(f"ours {precision}" for precision in precisions))}
    with busy_process():
        busy = in_turn(processes, beside, rounds)
    for name, found in busy.items():
        rate = statistics.median(one.images_per_second for one in found)
        print(f"beside a busy process: {name:14} {rate:7.1f} images/s, {ratios(found, quiet[name])} quiet")
    for process in processes.values():
        process.end()


def in_turn(
    processes: dict[str, Contender], tasks: dict[str, tuple[str, Task]], rounds: int
) -> dict[str, list[Measured]]:
    """Return the measurements of each task in all rounds."""
    found: dict[str, list[Measured]] = {name: [] for name in tasks}
    for _ in range(rounds):
        for name, (process, task) in tasks.items():
            found[name].append(processes[process].measure(task))
    return found


def ratios(ours_: list[Measured], theirs: list[Measured]) -> str:
    """Return the median and the range of the rounds' ratios of images per second, as text."""
    found = [a.images_per_second / b.images_per_second for a, b in zip(ours_, theirs, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f}) x"


def main() -> None:
    """Make model files and graphs, and compare the contenders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["resnet50"], help="resnet18, resnet20, resnet50, resnet152, ..."
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--photos", type=Path, help="folder of photographs, to predict and to calibrate int8 on")
    parser.add_argument(
        "--tune-on", help="DATA for `resnetkit tune`, such as a CSV with labels; unset: the photographs"
    )
    parser.add_argument("--max-top1-loss", type=float, default=0.5, help="for `resnetkit tune`")
    parser.add_argument("--weights-dir", type=Path, help="folder with NAME.safetensors (tuned or not) or *NAME.pth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2, help="of each measurement")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        serve(given.one, given.folder, given.file, given.seconds)
        return
    from machine import describe
    from networks import pictures_for, tune, write_model
    from resnetkit.infer.choice import BFLOAT16
    from resnetkit.machine import read_machine

    print(describe())
    print(f"pictures of 500x375 (those of small networks: of their size), {given.rounds} rounds of {given.seconds:g} s")
    for name in given.models:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            os.environ["RESNETKIT_CACHE"] = str(folder / "cache")
            model = write_model(name, folder, given.weights_dir)
            np.save(folder / "pictures.npy", np.stack(pictures_for(model, given.photos, CALIBRATION)))
            prepare(folder, model, given.photos)
            precisions = given.precisions
            if given.photos:
                data = given.tune_on or given.photos
                tune(model, data, "--max-top1-loss", given.max_top1_loss)
            if "bfloat16" in precisions and not set(BFLOAT16) & set(read_machine().instructions):
                precisions = [precision for precision in precisions if precision != "bfloat16"]
                print(f"\n{name}: no bfloat16: this processor does not multiply it")
            if "int8" in precisions and (missing := without_int8(model)):
                precisions = [precision for precision in precisions if precision != "int8"]
                print(f"\n{name}: no int8: {missing}")
            for batch in given.batches:
                compare(folder, model, batch=batch, precisions=precisions, rounds=given.rounds, seconds=given.seconds)


if __name__ == "__main__":
    main()

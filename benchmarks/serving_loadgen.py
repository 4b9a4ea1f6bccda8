"""A served model under MLPerf's load generator (mlcommons-loadgen), in the process of the server, without HTTP.

For each line of standard input, a mode, it measures and prints a JSON object:
- `bare SECONDS`: the tuned backend alone, in a loop on batches of prepared pixels: images per second;
- `offline SECONDS`: scenario Offline, all samples at once, each a request of one picture for `ServedModel.find`;
- `server SECONDS RATE BOUND`: scenario Server, requests of one picture at random moments (Poisson arrivals) at RATE per
  second, with the latency of the 99th percentile, in seconds; loadgen's verdict is for BOUND.

    python serving_loadgen.py MODEL PIXELS.npy
"""

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlperf_loadgen as loadgen
import numpy as np
from numpy.typing import NDArray

from resnetkit.infer.predictor import Predictor
from resnetkit.serve.classifier import OpenedClassifier
from resnetkit.serve.limits import Limits
from resnetkit.serve.metrics import Metrics
from resnetkit.serve.served import ServedModel

LEAST = 100  # queries of a run


class Tested:
    """The system under test: an event loop in a thread, as in the server, which asks the model for each sample."""

    def __init__(self, model: ServedModel, pixels: NDArray[np.uint8], *, at_a_time: int) -> None:
        """At most `at_a_time` requests are given to the model; the others wait, and the wait counts."""
        self._model = model
        self._pixels = pixels
        self._room = asyncio.Semaphore(at_a_time)
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()

    def run(self, **settings: Any) -> dict[str, str]:
        """Run a test with these settings, and return loadgen's summary by its names."""
        test = loadgen.TestSettings()
        test.mode = loadgen.TestMode.PerformanceOnly
        test.min_query_count = LEAST
        for name, value in settings.items():
            setattr(test, name, value)
        with tempfile.TemporaryDirectory() as folder:
            log = loadgen.LogSettings()
            log.enable_trace = False
            log.log_output.outdir = folder
            tested = loadgen.ConstructSUT(self._issue, lambda: None)
            samples = loadgen.ConstructQSL(len(self._pixels), len(self._pixels), lambda _: None, lambda _: None)
            loadgen.StartTestWithLogSettings(tested, samples, test, log)
            loadgen.DestroyQSL(samples)
            loadgen.DestroySUT(tested)
            lines = (Path(folder) / "mlperf_log_summary.txt").read_text().splitlines()
        return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines) if value}

    def _issue(self, samples: list[Any]) -> None:
        given = [(sample.id, sample.index) for sample in samples]  # the samples themselves are gone after this call
        self._loop.call_soon_threadsafe(self._start, given)

    def _start(self, given: list[tuple[int, int]]) -> None:
        for identity, index in given:
            task = self._loop.create_task(self._answer(identity, index))
            self._tasks.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if error := task.exception():  # loadgen would wait for the answer for ever
            print(f"a request failed: {error}", file=sys.stderr)
            os._exit(1)

    async def _answer(self, identity: int, index: int) -> None:
        async with self._room:
            await self._model.find([self._pixels[index]])
        loadgen.QuerySamplesComplete([loadgen.QuerySampleResponse(identity, 0, 0)])


def bare(predictor: Predictor, pixels: NDArray[np.uint8], seconds: float) -> float:
    """Return the backend's images per second on prepared batches."""
    size = predictor.batch_size
    batches = [pixels[first : first + size] for first in range(0, len(pixels) - size + 1, size)]
    began = time.monotonic()

    def until() -> Any:
        turn = 0
        while time.monotonic() - began < seconds:
            yield batches[turn % len(batches)]
            turn += 1

    done = sum(len(values) for values in predictor.backend.stream(until()))
    return done / (time.monotonic() - began)


def measure(predictor: Predictor, tested: Tested, pixels: NDArray[np.uint8], task: list[str]) -> dict[str, Any]:
    """Return the result of a mode."""
    mode, seconds = task[0], float(task[1])
    if mode == "bare":
        return {"rate": bare(predictor, pixels, seconds)}
    if mode == "offline":
        expected = float(task[2])
        found = tested.run(
            scenario=loadgen.TestScenario.Offline,
            offline_expected_qps=expected / 1.1,  # loadgen makes a tenth more than the time needs
            min_duration_ms=round(1000 * seconds),
        )
        return {"rate": float(found["Samples per second"])}
    rate, bound = float(task[2]), float(task[3])
    found = tested.run(
        scenario=loadgen.TestScenario.Server,
        server_target_qps=rate,
        server_target_latency_ns=round(1e9 * bound),
        server_target_latency_percentile=0.99,
        min_duration_ms=round(1000 * seconds),
    )
    return {
        "rate": float(found["Scheduled samples per second"]),
        "completed": float(found["Completed samples per second"]),
        "p50": float(found["50.00 percentile latency (ns)"]) / 1e9,
        "p99": float(found["99.00 percentile latency (ns)"]) / 1e9,
        "verdict": found["Result is"],
    }


def main() -> None:
    """Open the model, and measure what standard input asks for."""
    path, pixels = Path(sys.argv[1]), np.load(sys.argv[2])
    limits, predictor = Limits(), Predictor(path, goal="throughput")
    opened = OpenedClassifier(predictor)
    with ThreadPoolExecutor(1) as decoders:
        model = ServedModel("m", lambda: opened, limits=limits, metrics=Metrics(), decoders=decoders)
        print(json.dumps({"choice": str(predictor.choice)}), flush=True)
        tested = Tested(model, pixels, at_a_time=limits.queue // 2)
        for line in sys.stdin:
            print(json.dumps(measure(predictor, tested, pixels, line.split())), flush=True)
        model.close()


if __name__ == "__main__":
    main()

"""`resnetkit serve` under load: against its bare backend, against other servers, and at twice its capacity.

- tensors: uint8 tensors of single pictures, by MLPerf's load generator in the server's process: scenario Offline, and
  Server (Poisson arrivals) at a share of the rate of Offline; and as binary tensors of the Open Inference Protocol over
  HTTP, from a client on the same cores. All of them against the tuned backend alone, in turn, in each round.
- jpeg: the photographs as forms over HTTP, from a client that keeps some connections busy: ours, LitServe, a FastAPI
  handler with one eager forward for each request, and BentoML (see serving_peers.py), in turn. The others are stopped
  meanwhile.
- overload: requests at random moments at twice the rate that was just measured. Each must be answered by 200 or 503.
  Also the memory of the server, and its latency from a second after the end on, beside that of before.

It needs mlcommons-loadgen for tensors, and litserve and bentoml for jpeg. BentoML brings many packages, so an
environment of its own is best: pip install 'resnetkit[serve,export]' mlcommons-loadgen litserve bentoml. What is not
installed is left out, and that is said.

    python benchmarks/serving.py --photos DIR [--model resnet50] [--weights-dir DIR] [--tune-on DATA] [--rounds 3]
"""

import argparse
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
PARTS = ("tensors", "jpeg", "overload")
PEERS = {
    "fastapi": "fastapi",
    "fastapi-threads": "fastapi",
    "litserve": "litserve",
    "litserve-batched": "litserve",
    "bentoml": "bentoml",
}
"""Contenders of serving_peers.py, and the package that each needs."""
SHARE = 0.88
"""The rate of scenario Server, as a share of the rate of Offline: that of the best CPUs in MLPerf Inference v5.0."""
START_SECONDS = 120


@dataclass(frozen=True)
class Load:
    """What came back of a load."""

    statuses: dict[int, int]
    """Number of answers by status; 0 is no answer."""
    rate: float
    """Answers with status 200 per second."""
    latencies: list[float]
    """Seconds, of the answers with status 200."""

    @property
    def p50(self) -> float:
        """The median latency, in milliseconds."""
        return 1000 * statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        """The latency that 1 % of the answers exceed, in milliseconds."""
        return 1000 * sorted(self.latencies)[min(len(self.latencies) - 1, int(0.99 * len(self.latencies)))]


class Service:
    """A server in another process."""

    def __init__(self, command: Sequence[object], log: Path, *, port: int = 0) -> None:
        """Start it. Port 0: it says its port in its first line, as `resnetkit serve` does."""
        self.port = port
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                stdout=subprocess.PIPE if not port else file,
                stderr=file,
                text=True,
                cwd=HERE,
            )
        if not port:
            assert self.process.stdout is not None
            line = self.process.stdout.readline()
            if not (found := re.search(r":(\d+)$", line.strip())):
                sys.exit(f"resnetkit serve did not start: {log.read_text()}")
            self.port = int(found[1])

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def wait(self, requests: Path, log: Path) -> None:
        """Return when requests are answered by 200; end the benchmark if that takes too long."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            with socket.socket() as probe:
                listens = probe.connect_ex(("127.0.0.1", self.port)) == 0
            if listens and send(self, requests, "open", rate=1000, count=1).statuses.get(200):
                return
            time.sleep(0.5)
        sys.exit(f"a server did not start: {log.read_text()[-2000:]}")

    def signal(self, number: int) -> None:
        """Send a signal to all its processes: some servers start theirs in groups of their own."""
        for pid in family(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self) -> None:
        """Kill it, if it still runs."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def memory(self) -> float:
        """Return the resident MiB of its first process."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def family(pid: int) -> list[int]:
    """Return a process and all that it started, and they."""
    parents: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for one in found:  # it grows meanwhile
        found += [child for child, parent in parents.items() if parent == one]
    return found


def send(service: Service, requests: Path, loop: str, **settings: float) -> Load:
    """Send prepared requests to a server: see serving_client.py."""
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    command = [sys.executable, HERE / "serving_client.py", loop, service.address, requests, *flags]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    statuses: dict[int, int] = {}
    for status, *_ in said["answers"]:
        statuses[status] = statuses.get(status, 0) + 1
    latencies = [latency for status, latency, _ in said["answers"] if status == 200]
    return Load(statuses, len(latencies) / said["seconds"], latencies or [float("nan")])


def write_requests(folder: Path, model: Path, photos: Sequence[Path]) -> None:
    """Write pixels.npy, the decoded photographs, and requests: `tensors/` and `forms/` have one file for each."""
    from resnetkit.infer.predictor import Predictor

    predictor = Predictor(model, goal="throughput")
    contents = [path.read_bytes() for path in photos]
    pixels = np.stack([decoded for content in contents if isinstance(decoded := predictor.decode(content), np.ndarray)])
    np.save(folder / "pixels.npy", pixels)
    for kind in ("tensors", "forms"):
        (folder / kind).mkdir()
    for turn, picture in enumerate(pixels):
        tensor = {
            "name": "pixels",
            "datatype": "UINT8",
            "shape": [1, *picture.shape],
            "parameters": {"binary_data_size": picture.size},
        }
        outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
        head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
        more = f"Inference-Header-Content-Length: {len(head)}\r\nContent-Type: application/octet-stream\r\n"
        written = request("/v2/models/m/infer", more, head + picture.tobytes())
        (folder / "tensors" / f"{turn:04}").write_bytes(written)
    for turn, (path, content) in enumerate(zip(photos, contents, strict=True)):
        part = f'--limit\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n'
        body = f"{part}Content-Type: image/jpeg\r\n\r\n".encode() + content + b"\r\n--limit--\r\n"
        written = request("/predict", "Content-Type: multipart/form-data; boundary=limit\r\n", body)
        (folder / "forms" / f"{turn:04}").write_bytes(written)


def request(path: str, headers: str, body: bytes) -> bytes:
    """Return the bytes of a POST request."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: */*\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@contextmanager
def ours(folder: Path, model: Path) -> Iterator[Service]:
    """`resnetkit serve` with the model, called m."""
    log = folder / "ours.txt"
    service = Service(["-m", "resnetkit", "serve", f"m={model}", "--port", 0, "--drain", 0], log)
    try:
        yield service
    finally:
        service.end()


class Generator:
    """A process with a served model under MLPerf's load generator: see serving_loadgen.py."""

    def __init__(self, folder: Path, model: Path) -> None:
        command = [sys.executable, HERE / "serving_loadgen.py", model, folder / "pixels.npy"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.choice = self._said()["choice"]

    def measure(self, *task: object) -> dict:
        """Return the result of a mode."""
        assert self._process.stdin is not None
        print(*task, file=self._process.stdin, flush=True)
        return self._said()

    def end(self) -> None:
        """End the process."""
        self._process.communicate()

    def _said(self) -> dict:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def tensors(folder: Path, model: Path, given: argparse.Namespace) -> None:
    """Measure the bare backend, Offline, Server and HTTP in turn; print medians and ratios."""
    if not find_spec("mlperf_loadgen"):
        print("\ntensors: left out, mlcommons-loadgen is not installed")
        return
    generator = Generator(folder, model)
    print(f"\ntensors, single pictures; {generator.choice}", flush=True)
    found: dict[str, list[float]] = {name: [] for name in ("bare", "offline", "server", "http")}
    tails: dict[str, list[float]] = {"server": [], "http": []}
    with ours(folder, model) as service:
        send(service, folder / "tensors", "closed", connections=given.connections, seconds=2)  # warmed up
        before = generator.measure("bare", given.seconds)["rate"]
        for _ in range(given.rounds):
            offline = generator.measure("offline", given.seconds, before)["rate"]
            http = send(service, folder / "tensors", "closed", connections=given.connections, seconds=given.seconds)
            after = generator.measure("bare", given.seconds)["rate"]
            server = generator.measure("server", 2 * given.seconds, SHARE * offline, given.bound)
            found["bare"].append((before + after) / 2)
            found["offline"].append(offline)
            found["http"].append(http.rate)
            found["server"].append(server["rate"])
            tails["server"].append(1000 * server["p99"])
            tails["http"].append(http.p99)
            before = after
            if set(http.statuses) != {200}:
                print(f"  over HTTP, answers by status: {http.statuses}")
    generator.end()
    for name, rates in found.items():
        base = "offline" if name == "server" else "bare"
        ratio = "" if name == "bare" else f"; {spread(rates, found[base])} x {base}"
        tail = f", p99 {statistics.median(tails[name]):.0f} ms" if name in tails else ""
        print(f"{name:8} {statistics.median(rates):8.1f} images/s ({min(rates):.1f} to {max(rates):.1f}){tail}{ratio}")
    worst = max(tails["server"])
    print(
        f"server at {SHARE} of offline: p99 at most {worst:.0f} ms in {given.rounds} rounds, "
        f"{'within' if worst <= 1000 * given.bound else 'over'} the bound of {1000 * given.bound:.0f} ms",
        flush=True,
    )


def jpeg(folder: Path, model: Path, given: argparse.Namespace) -> None:
    """Measure each server in turn; print medians and ratios."""
    print(f"\nphotographs in forms, {given.connections} connections")
    chosen = {name: package for name, package in PEERS.items() if name in given.peers}
    for name in [name for name, package in chosen.items() if not find_spec(package)]:
        print(f"{name}: left out, {chosen.pop(name)} is not installed")
    forms = folder / "forms"
    with ExitStack() as stack:
        services = {"ours": stack.enter_context(ours(folder, model))}
        for name in chosen:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            log = folder / f"{name}.txt"
            service = services[name] = Service([HERE / "serving_peers.py", name, model, port], log, port=port)
            stack.callback(service.end)
            service.wait(forms, log)
            service.signal(signal.SIGSTOP)
        services["ours"].signal(signal.SIGSTOP)
        found: dict[str, list[Load]] = {name: [] for name in services}
        for turn in range(given.rounds + 1):
            for name, service in services.items():
                service.signal(signal.SIGCONT)
                seconds = given.seconds if turn else 3  # the first warms up
                load = send(service, forms, "closed", connections=given.connections, seconds=seconds)
                service.signal(signal.SIGSTOP)
                if turn:
                    found[name].append(load)
    for name, loads in found.items():
        rates = [load.rate for load in loads]
        others = {
            status: sum(load.statuses.get(status, 0) for load in loads) for load in loads for status in load.statuses
        }
        ratio = "" if name == "ours" else f"; ours / it {spread([load.rate for load in found['ours']], rates)}"
        print(
            f"{name:17} {statistics.median(rates):7.1f} images/s ({min(rates):.1f} to {max(rates):.1f}), "
            f"p50 {statistics.median(load.p50 for load in loads):.0f} ms, "
            f"p99 {statistics.median(load.p99 for load in loads):.0f} ms"
            + ("" if set(others) == {200} else f", answers by status {others}")
            + ratio,
            flush=True,
        )


def overload(folder: Path, model: Path, given: argparse.Namespace) -> None:
    """Send requests at twice the capacity; print what was answered, the memory and the latency after the end."""
    forms = folder / "forms"
    with ours(folder, model) as service:
        capacity = send(service, forms, "closed", connections=given.connections, seconds=given.seconds).rate
        calm = send(service, forms, "closed", connections=1, seconds=5)
        memories: list[float] = []
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(1):
                memories.append(service.memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        load = send(service, forms, "open", rate=2 * capacity, count=given.count)
        ended.set()
        watcher.join()
        time.sleep(1)
        after = send(service, forms, "closed", connections=1, seconds=5)
        service.process.terminate()
        code = service.process.wait(60)
    quarters = [memories[(len(memories) - 1) * part // 4] for part in range(1, 5)]
    print(
        f"\noverload: {given.count} requests at {2 * capacity:.1f} a second, "
        f"twice the rate of {given.connections} connections"
    )
    print(f"answers by status {dict(sorted(load.statuses.items()))}; {load.rate:.1f} a second with 200")
    print(f"latency of those: p50 {load.p50:.0f} ms, p99 {load.p99:.0f} ms")
    print(f"memory in MiB after each quarter: {', '.join(f'{one:.0f}' for one in quarters)}")
    print(f"one at a time: p50 {calm.p50:.0f} ms, p99 {calm.p99:.0f} ms before; ", end="")
    print(f"{after.p50:.0f} ms, {after.p99:.0f} ms from one second after the end; exit code {code}")
    lost = sum(number for status, number in load.statuses.items() if status not in (200, 503))
    if lost or sum(load.statuses.values()) != given.count or code:
        sys.exit(f"{lost} requests were not answered by 200 or 503, or the exit code is not 0")


def spread(rates: list[float], base: list[float]) -> str:
    """Return the median and the range of the rounds' ratios."""
    found = [a / b for a, b in zip(rates, base, strict=True)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def main() -> None:
    """Prepare the model and the requests, and measure the parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to send and to tune on")
    parser.add_argument(
        "--tune-on", help="DATA for `resnetkit tune`, such as a CSV with labels; unset: the photographs"
    )
    parser.add_argument("--weights-dir", type=Path, help="folder with NAME.safetensors (tuned or not) or *NAME.pth")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10, help="of each measurement; scenario Server has twice that")
    parser.add_argument("--bound", type=float, default=2.0, help="seconds that the 99th percentile of Server may take")
    parser.add_argument("--connections", type=int, default=32, help="that the client keeps busy")
    parser.add_argument("--count", type=int, default=10_000, help="requests of the overload")
    given = parser.parse_args()
    from machine import describe
    from networks import tune, write_model

    parts: dict[str, Callable[[Path, Path, argparse.Namespace], None]] = {
        "tensors": tensors,
        "jpeg": jpeg,
        "overload": overload,
    }
    photos = sorted(path for path in given.photos.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ.setdefault("RESNETKIT_CACHE", str(folder / "cache"))
        model = write_model(given.model, folder, given.weights_dir)
        tune(model, given.tune_on or given.photos, "--goal", "throughput")
        write_requests(folder, model, photos)
        print(describe())
        print(f"{given.model}, {len(photos)} photographs, {given.rounds} rounds of {given.seconds:g} s")
        for part in given.parts:
            parts[part](folder, model, given)


if __name__ == "__main__":
    main()

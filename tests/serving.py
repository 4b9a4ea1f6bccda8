"""A small model, its server in this process or in another, and pictures to send."""

import asyncio
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Thread

import httpx
import numpy as np
import torch
import uvicorn
from PIL import Image

from resnetkit.calibration import Calibration
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.files import header_of, save_detector, with_thresholds
from resnetkit.detect.model import Detector
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.detect.spec import DETECTORS
from resnetkit.infer.predictor import Predictor
from resnetkit.modelfile import Header, inspect, save
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec
from resnetkit.serve.app import create_app
from resnetkit.serve.classifier import OpenedClassifier
from resnetkit.serve.detector import OpenedDetector
from resnetkit.serve.guard import Guard
from resnetkit.serve.limits import Limits
from resnetkit.serve.listener import address_of, listen
from resnetkit.serve.metrics import Metrics
from resnetkit.serve.opened import Opened
from resnetkit.serve.served import ServedModel
from resnetkit.serve.server import configuration

CLASSES = ("cat", "frog", "Größe")
READY = re.compile(r"serving ([\w., -]+) at (http://\S+)\n")


def write_model(path: Path, *, seed: int = 0, size: int = 32, calibration: Calibration | None = None) -> Path:
    """Write a net of three classes whose probabilities differ between pictures and between seeds."""
    torch.manual_seed(seed)
    net = build("resnet20", depths=(1, 1, 1), classes=3)
    net.train()
    with torch.no_grad():
        net(torch.randn(16, 3, 32, 32))
        net.fc.weight.mul_(5)
    preprocess = Preprocess(size=size, resize=size + 4)
    save(path, net.eval(), Header(net.spec, preprocess, CLASSES, calibration=calibration))
    return path


def write_detector(path: Path, *, seed: int = 0, thresholds: Mapping[str, float] | None = None) -> Path:
    """Write a small detector of three classes, which finds much in any picture, by chance."""
    torch.manual_seed(seed)
    spec = replace(DETECTORS["fpn-small"], width=16, hidden=32, proposals=(50, 30))
    net = Detector(parse_spec("resnet18,width=8,norm=frozen"), spec, Preprocess(64), classes=3).eval()
    header = header_of(net, CLASSES, data={"name": "pets", "shorter_side": 48}, metrics={"ap50_percent": 12.5})
    save_detector(path, net, with_thresholds(header, thresholds or {}))
    return path


def jpeg(seed: int = 0, size: tuple[int, int] = (60, 44), kind: str = "JPEG") -> bytes:
    """The content of a picture file."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, kind)
    return file.getvalue()


@contextmanager
def served(
    path: Path, *, limits: Limits | None = None, key: str | None = None, batch_size: int = 4
) -> Iterator[tuple[Guard, ServedModel]]:
    """A server in this process, without a socket, and its model, which is called m."""
    limits, metrics = limits or Limits(), Metrics()
    with ThreadPoolExecutor(2) as decoders:
        model = ServedModel(
            "m",
            lambda: opened(path, batch_size),
            limits=limits,
            metrics=metrics,
            decoders=decoders,
            files=[path],
        )
        yield create_app({"m": model}, limits=limits, metrics=metrics, api_key=key), model
        model.close()


def opened(path: Path, batch_size: int) -> Opened:
    """A model file, opened as the server opens it."""
    if inspect(path).kind == "detector":
        return OpenedDetector(DetectorPredictor(path, backend="torch"))
    return OpenedClassifier(Predictor(path, backend="torch", batch_size=batch_size))


def client(app: Guard, **headers: str) -> httpx.AsyncClient:
    """A client of a server in this process."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)  # type: ignore[arg-type]


@contextmanager
def listening(app: Guard) -> Iterator[str]:
    """A server in this process that listens on a socket, and its address."""
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(configuration(app, Limits()))
    thread = Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    yield address_of(listener)
    server.should_exit = True
    thread.join()


@contextmanager
def process(
    *arguments: str,
    cache: Path,
    python: Sequence[str] = (sys.executable,),
    environment: Mapping[str, str] | None = None,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`resnetkit serve` in a process of its own, and its address. It is killed at the end if it still runs."""
    environment = os.environ | {"RESNETKIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"} | dict(environment or {})
    command = [*python, "-m", "resnetkit", "serve", *arguments, "--port", "0"]
    with (cache / "log.txt").open("w") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert running.stdout is not None
    try:
        line = running.stdout.readline()
        found = READY.fullmatch(line)
        assert found, (line, (cache / "log.txt").read_text())
        yield running, found[2]
    finally:
        running.kill()
        running.wait()
        running.stdout.close()

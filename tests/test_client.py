"""The client of a server, and `verify --url`, which compares a server's answers with those of `predict`."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from resnetkit.calibration import Calibration
from resnetkit.cli import main
from resnetkit.errors import DataError, UsageError
from resnetkit.serve.client import Client
from resnetkit.verification.agreement import find_card
from serving import jpeg, process, write_model


@contextmanager
def answering(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[tuple[str, dict, bytes]]]]:
    """A server that gives these answers one after another, and what it was asked."""
    asked: list[tuple[str, dict, bytes]] = []
    left = iter(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.path, dict(self.headers), body))
            status, headers, content = next(left)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def test_a_picture_is_asked_for_again_while_the_server_is_busy() -> None:
    result = {"name": "a", "predictions": [{"label": "cat", "index": 0, "probability": 1.0}]}
    good = json.dumps({"model": "m", "results": [result]}).encode()
    with answering((503, {"Retry-After": "0"}, b"{}"), (200, {}, good)) as (url, asked):
        assert Client(url + "/", "s3cret").predict(b"picture", model="m m", top=3, reject=True) == result
    assert [path for path, _, _ in asked] == ["/predict?model=m+m&top=3&reject=true"] * 2
    assert [(headers["X-Api-Key"], body) for _, headers, body in asked] == [("s3cret", b"picture")] * 2


def test_the_card_is_that_of_the_same_file_or_of_the_first_model_of_the_kind() -> None:
    cards = [
        {"name": "cells", "kind": "detector", "fingerprint": "a"},
        {"name": "pets", "kind": "classifier", "fingerprint": "b"},
        {"name": "birds", "kind": "classifier", "fingerprint": "c"},
    ]
    found = (200, {}, json.dumps({"models": cards}).encode())
    with answering(*[found] * 3, (200, {}, json.dumps({"models": cards[:1]}).encode())) as (url, _):
        client = Client(url)
        assert find_card(client, "c", "classifier") == (cards[2], True)
        assert find_card(client, "x", "classifier") == (cards[1], False)
        assert find_card(client, "x", "detector") == (cards[0], False)
        with pytest.raises(DataError, match="serves no classifier, but cells"):
            find_card(client, "x", "classifier")


def test_a_picture_that_can_not_be_read_has_its_reason() -> None:
    bad = json.dumps({"model": "m", "results": [{"name": "a", "error": "broken"}]}).encode()
    with answering((422, {}, bad)) as (url, _):
        assert Client(url).predict(b"x", model="m", top=1) == {"name": "a", "error": "broken"}


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (401, b'{"error": "no"}', "asks for its key; give it in RESNETKIT_API_KEY"),
        (404, b'{"error": "there is no model"}', "answered with the status 404: there is no model"),
        (500, b"<html>", "answered with the status 500"),
        (200, b"<html>", "is no server of resnetkit: its answer is not a JSON object"),
        (200, b"[]", "is no server of resnetkit: its answer is not a JSON object"),
        (200, b"{}", "is no server of resnetkit: its /models names no models"),
    ],
)
def test_other_answers_are_told(status: int, content: bytes, message: str) -> None:
    with answering((status, {}, content)) as (url, _), pytest.raises(DataError, match=message):
        Client(url).models()


def test_addresses_that_nobody_answers_at() -> None:
    with pytest.raises(UsageError, match="`url` is localhost:8000; give the address of a server"):
        Client("localhost:8000")
    with pytest.raises(UsageError, match="`url` is file:///etc/passwd"):
        Client("file:///etc/passwd")
    with socket.create_server(("127.0.0.1", 0)) as other:  # a server of another protocol
        threading.Thread(target=lambda: other.accept()[0].sendall(b"220 mail\r\n"), daemon=True).start()
        with pytest.raises(DataError, match=r"can't be asked \(220 mail.*\); start it: resnetkit serve"):
            Client(f"http://127.0.0.1:{other.getsockname()[1]}").models()
    with pytest.raises(DataError, match=r"http://127.0.0.1:1 can't be asked \(.*refused\); start it: resnetkit serve"):
        Client("http://127.0.0.1:1").models()


def test_a_server_that_cannot_be_asked_is_said_before_the_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "resnet20:cifar10", "--url", "http://127.0.0.1:1"]) == 1
    said = capsys.readouterr().err
    assert "http://127.0.0.1:1 can't be asked" in said
    assert "comparing" not in said


class NotInstalled:
    """An export that takes seconds and is not what is tested here."""

    packages = ("a_package_that_is_not_there",)


@pytest.fixture
def served_folder(tmp_path: Path, kernel_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibrated model m, a copy with another temperature and other weights, and pictures."""
    (tmp_path / "kernels").symlink_to(kernel_folder)
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("RESNETKIT_API_KEY", "s3cret")
    monkeypatch.setattr(
        "resnetkit.verification.classifiers.FILE_FORMATS", dict.fromkeys(("onnx", "openvino"), NotInstalled)
    )
    (tmp_path / "pictures").mkdir()
    for place in range(9):
        (tmp_path / "pictures" / f"{place}.jpg").write_bytes(jpeg(place))
    calibration = Calibration(2.5, 40, tuple(0.4 + 0.01 * place for place in range(40)))
    write_model(tmp_path / "m.safetensors", calibration=calibration)
    other = Calibration(2.6, 40, tuple(0.5 + 0.01 * place for place in range(40)))
    write_model(tmp_path / "warmer.safetensors", calibration=other)
    write_model(tmp_path / "other.safetensors", seed=1, calibration=calibration)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino"])
def test_the_answers_of_a_server_join_the_receipt(
    served_folder: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pictures = str(served_folder / "m.safetensors"), str(served_folder / "pictures")
    # The server's second model is the right one, which its fingerprint tells.
    models = [f"first={served_folder / 'other.safetensors'}", f"second={model}"]
    with process(*models, "--backend", backend, cache=served_folder) as (_, url):
        assert main(["verify", model, pictures, "--url", url, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert main(["verify", model, pictures, "--url", url]) == 0
        out = capsys.readouterr().out
    assert found["agrees"]
    assert found["ways"]["served"]["agrees"]
    assert found["ways"]["served"]["largest_difference"] < 1e-4
    served = found["served"]
    assert served["largest_difference"] <= 1e-6
    assert (served["other_rejections"], served["same_file"], served["model"]) == (0, True, "second")
    assert served["computed_by"].startswith(f"{backend} float32")
    assert f"{url}, model second: beside predict by {backend} float32" in out


@pytest.mark.slow
@pytest.mark.parametrize("served", ["warmer", "other"])
def test_a_server_with_another_model_does_not_agree(
    served_folder: Path, served: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model, pictures = str(served_folder / "m.safetensors"), str(served_folder / "pictures")
    with process(f"m={served_folder / served}.safetensors", "--backend", "torch", cache=served_folder) as (_, url):
        assert main(["verify", model, pictures, "--url", url]) == 1
    out = capsys.readouterr().out
    assert "its model file is ANOTHER one" in out
    assert "the ways do NOT agree" in out


def test_the_url_is_checked_before_anything_is_computed(
    served_folder: Path, capsys: pytest.CaptureFixture[str], count_of_loads: Callable[[], int]
) -> None:
    assert main(["verify", str(served_folder / "m.safetensors"), "--url", "ftp://x"]) == 2
    assert "--url is ftp://x; give the address of a server" in capsys.readouterr().err
    assert count_of_loads() == 0


@pytest.fixture
def count_of_loads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    loads: list[object] = []
    monkeypatch.setattr("resnetkit.verification.classifiers.load", loads.append)
    return lambda: len(loads)

"""What runs the server elsewhere: its requirements without torch, and the manifests of deploy/."""

import importlib.metadata
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from resnetkit.cli import main
from resnetkit.infer.predictor import Predictor
from resnetkit.serve.limits import Limits
from resnetkit.serve.metrics import Metrics
from serving import jpeg, process, served, write_model

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
LEFT_OUT = {"torch", "torchvision"}
"""Dependencies that a server of tuned graphs does without."""
pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not here: the package is tested without it")


def requirements() -> list[str]:
    lines = (DEPLOY / "requirements.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_the_requirements_are_those_of_the_package_without_torch() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    own = [one for one in project["dependencies"] if Requirement(one).name not in LEFT_OUT]
    openvino = [one for one in extras["export"] if Requirement(one).name == "openvino"]
    assert sorted(requirements()) == sorted([*own, *openvino, *extras["serve"]])


def needed(texts: list[str]) -> set[str]:
    """Return the names of the distributions that these requirements bring, with what they need themselves."""
    found: set[str] = set()
    todo = [Requirement(text) for text in texts]
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        for extra in {"", *one.extras}:
            if f"{name}[{extra}]" in found:
                continue
            found |= {name, f"{name}[{extra}]"}
            for text in importlib.metadata.requires(name) or []:
                more = Requirement(text)
                if more.marker is None or more.marker.evaluate({"extra": extra}):
                    todo.append(more)
    return {name for name in found if "[" not in name}


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with what the requirements bring, and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    for name in needed(requirements()):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    assert not (folder / "torch").exists()
    return folder


@pytest.fixture
def environment(packages: Path) -> dict[str, str]:
    """The variables for a Python that has no other packages: started with -S, it does not look for them."""
    return {"PYTHONPATH": f"{packages}{os.pathsep}{ROOT / 'src'}"}


@pytest.mark.slow
def test_a_graph_is_served_where_torch_is_not_installed(
    environment: dict[str, str], tmp_path: Path, kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernels").symlink_to(kernel_folder)
    monkeypatch.setenv("RESNETKIT_CACHE", str(cache))
    path = write_model(tmp_path / "m.safetensors")
    expected = Predictor(path, backend="openvino", goal="throughput")(jpeg(), top=3)  # makes the graph
    with process(f"m={path}", cache=cache, python=[sys.executable, "-S"], environment=environment) as (running, url):
        answer = httpx.post(f"{url}/predict", files={"file": ("a.jpg", jpeg())}, timeout=60)
        explained = httpx.post(f"{url}/predict?explain=true", files={"file": ("a.jpg", jpeg())}, timeout=60)
        page = httpx.get(f"{url}/metrics", timeout=60)
        running.send_signal(signal.SIGTERM)
        assert running.wait(60) == 0
    assert answer.status_code == 200
    found = answer.json()["results"][0]["predictions"]
    assert [one["index"] for one in found] == [p.index for p in expected]
    assert [one["probability"] for one in found] == pytest.approx([p.probability for p in expected], abs=1e-6)
    assert explained.status_code == 200
    assert explained.json()["results"][0]["explanation"]["png"]
    assert page.status_code == 200
    assert "Traceback" not in (cache / "log.txt").read_text()


@pytest.mark.slow
def test_a_graph_that_is_missing_there_is_one_clear_line(environment: dict[str, str], tmp_path: Path) -> None:
    path = write_model(tmp_path / "m.safetensors")
    command = [sys.executable, "-S", "-m", "resnetkit", "serve", str(path), "--port", "0"]
    variables = os.environ | environment | {"RESNETKIT_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert "logits.xml does not exist, and torch" in done.stderr
    assert str(path) in done.stderr


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def containers() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return for each manifest the specification of its pod, and its container."""
    (pod,) = [one["spec"]["template"]["spec"] for one in documents("kubernetes.yaml") if one["kind"] == "Deployment"]
    (service,) = documents("kserve.yaml")
    predictor = service["spec"]["predictor"]
    return {
        "kubernetes.yaml": (pod, pod["containers"][0]),
        "kserve.yaml": (predictor, predictor["containers"][0]),
    }


def queries() -> list[str]:
    (scaled,) = [one["spec"] for one in documents("kubernetes.yaml") if one["kind"] == "ScaledObject"]
    (service,) = documents("kserve.yaml")
    (metric,) = service["spec"]["predictor"]["autoScaling"]["metrics"]
    return [scaled["triggers"][0]["metadata"]["query"], metric["external"]["metric"]["query"]]


@pytest.mark.parametrize("name", ["kubernetes.yaml", "kserve.yaml"])
def test_manifests_name_what_the_server_has(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod, container = containers()[name]
    main(["serve", "--help"])
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    flags = [argument for argument in container["args"] if argument.startswith("--")]
    assert set(flags) <= known
    drain = float(container["args"][container["args"].index("--drain") + 1])
    assert pod["terminationGracePeriodSeconds"] > drain + Limits().timeout + Limits().body_timeout
    with served(write_model(tmp_path / "m.safetensors")) as (app, _):
        paths = set(app._app.openapi()["paths"])
    asked = {probe["httpGet"]["path"] for key, probe in container.items() if key.endswith("Probe")}
    assert len(asked) == 2
    assert asked <= paths
    model = container["args"][0].removeprefix("photos=")
    cache = {one["name"]: one.get("value") for one in container["env"]}.get("RESNETKIT_CACHE") or own_cache()
    assert Path(cache).parent == Path(model).parent


def own_cache() -> str:
    (found,) = re.findall(r"RESNETKIT_CACHE=(\S+)", (DEPLOY / "Containerfile").read_text())
    return found


def test_pods_are_added_by_a_metric_that_there_is() -> None:
    metrics = Metrics()
    metrics.stage_seconds.labels("photos", "queue").observe(0.1)
    text = metrics.text().decode()
    for query in queries():
        for name in re.findall(r"resnetkit_\w+", query):
            assert f'{name}{{model="photos",stage="queue"}}' in text
        assert 'stage="queue", model="photos"' in query
    assert queries()[0] == queries()[1]


def test_the_container_has_the_port_and_the_files_that_it_names() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    (pod, container) = containers()["kubernetes.yaml"]
    (port,) = re.findall(r"EXPOSE (\d+)", text)
    assert container["ports"][0]["containerPort"] == int(port) == 8000
    (user,) = re.findall(r"USER (\d+):", text)
    assert pod["securityContext"]["runAsUser"] == int(user)
    for file in re.findall(r"COPY (deploy/\S+)", text):
        assert (ROOT / file).is_file()
    ignored = (DEPLOY / "Containerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert "!deploy/requirements.txt" in ignored

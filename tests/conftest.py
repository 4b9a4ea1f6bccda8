"""Real pictures for tests: 420 pictures of CIFAR-10 from tests/data, and larger sets if they are on this machine."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from resnetkit.data.published.cifar_archives import CIFAR10, decode_sheets
from resnetkit.data.samples import Samples

SUBSET = Path(__file__).parent / "data" / "cifar10-subset"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-cases", action="store_true", help="run every case of the tests that are marked `sampled`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of the slow cases of a test marked sampled(n), keep each n-th, beginning with the first, but for --all-cases."""
    if config.getoption("--all-cases"):
        return
    seen: Counter[str] = Counter()
    kept, left_out = [], []
    for item in items:
        name = item.nodeid.partition("[")[0]
        marker = item.get_closest_marker("sampled") if item.get_closest_marker("slow") else None
        (left_out if marker and seen[name] % marker.args[0] else kept).append(item)
        seen[name] += marker is not None
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder and no network for each test; returns the folder."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RESNETKIT_CACHE", str(cache))
    monkeypatch.setenv("RESNETKIT_OFFLINE", "1")
    return cache


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads by which kernels compute in the test."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kernel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for compiled kernels that outlives a test."""
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture
def compiled_once(own_cache: Path, kernel_folder: Path) -> None:
    """Kernels that another test has compiled, for tests that start many processes."""
    (own_cache / "kernels").symlink_to(kernel_folder)


@pytest.fixture(scope="session")
def cifar_subset() -> tuple[Samples, Samples]:
    """Train (300 pictures) and test (120), 30 and 12 of each of CIFAR-10's classes; images uint8 (n, 32, 32, 3)."""
    parts = []
    for part in ("train", "test"):
        names = (f"{part}.png", f"{part}.json")
        images, labels = decode_sheets({name: (SUBSET / name).read_bytes() for name in names})
        images.flags.writeable = labels.flags.writeable = False  # shared by all tests
        parts.append(Samples(CIFAR10.classes, labels, images))
    return parts[0], parts[1]


@pytest.fixture
def picture_folder(tmp_path: Path, cifar_subset: tuple[Samples, Samples]) -> Path:
    """root/<class>/<picture>: 20 pictures of 32×32 of each class (cat, frog, ship), PNG and JPEG in turn."""
    train, _ = cifar_subset
    root = tmp_path / "pictures"
    for name in ("cat", "frog", "ship"):
        _write(train, name, root / name, count=20)
    return root


@pytest.fixture
def split_folder(tmp_path: Path, cifar_subset: tuple[Samples, Samples]) -> Path:
    """root/{train,test}/<class>/<picture>: all of the subset, ten classes, 300 and 120 pictures."""
    root = tmp_path / "split"
    for part, samples in zip(("train", "test"), cifar_subset, strict=True):
        for name in samples.classes:
            _write(samples, name, root / part / name, count=len(samples))
    return root


def _write(samples: Samples, name: str, folder: Path, *, count: int) -> None:
    """Write the first `count` pictures of the class `name` to `folder`."""
    assert samples.images is not None
    folder.mkdir(parents=True)
    indices = [i for i, label in enumerate(samples.labels) if samples.classes[label] == name][:count]
    for place, i in enumerate(indices):
        picture = Image.fromarray(samples.images[i])
        if place % 2:
            picture.save(folder / f"{name} {place:02d}.jpg", quality=95)
        else:
            picture.save(folder / f"{name} {place:02d}.png")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of larger sets and published weights, $RESNETKIT_SHARED. Tests are skipped without it."""
    folder = Path(os.environ.get("RESNETKIT_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"needs the sets in {folder}, which is not there; RESNETKIT_SHARED names another place")
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """The folder "run" with an untrained network of 2 classes for 32 × 32 pixels as its best model."""
    from resnetkit.data.transforms.preprocess import Preprocess
    from resnetkit.modelfile import Header, save
    from resnetkit.models.resnet import build

    net = build("resnet20", depths=(1, 1, 1), classes=2).eval()
    folder = tmp_path / "run"
    folder.mkdir()
    save(folder / "best.safetensors", net, Header(net.spec, Preprocess(size=32), ("a", "b")))
    return folder

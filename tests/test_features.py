"""The cache of features: equal to the network's own, computed once, resumed, bounded, found by content."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.loader import Loader
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.normalize import Normalize
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError
from resnetkit.finetune.features import FeatureCache
from resnetkit.finetune.table import KEY_BYTES, Table
from resnetkit.finetune.trunk import Trunk
from resnetkit.finetune.views import MIRRORED, PLAIN, View, training_views
from resnetkit.modelfile import Header, Model
from resnetkit.models.resnet import build

PREPROCESS = Preprocess(size=32, resize=36)


def some_model(spec: str = "resnet18,width=8", *, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    net = build(spec, classes=3)
    for module in net.modules():  # statistics as after training, so that folding is tested
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    return Model(net.eval(), Header(net.spec, PREPROCESS, ("a", "b", "c")))


def some_files(folder: Path, count: int = 9) -> Samples:
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        paths.append(folder / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)).save(paths[-1])
    return Samples(("a", "b", "c"), np.arange(count) % 3, paths=tuple(paths))


def of_the_network(model: Model, samples: Samples) -> np.ndarray:
    """The pooled last map by the network itself, float32 (n, channels), on the pictures of validation."""
    (batch,) = Loader(samples, model.header.preprocess, batch_size=len(samples)).epoch()
    with torch.no_grad():
        return model.net.features(Normalize(model.header.preprocess)(batch.images))[-1].mean((2, 3)).numpy()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many pictures each batch of a trunk had."""
    counts: list[int] = []
    stream = Trunk.stream

    def counting(self, batches):
        for values in stream(self, batches):
            counts.append(len(values.pool))
            yield values

    monkeypatch.setattr(Trunk, "stream", counting)
    return counts


SPECS = ["resnet18,width=8", "resnet50,width=8", "resnext50_32x4d,width=32,groups=4", "resnet18,width=8,shortcut=none"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("way", ["openvino", "torch"])
def test_features_are_those_of_the_network(tmp_path: Path, spec: str, way: str) -> None:
    if way == "openvino":
        pytest.importorskip("openvino")
    model, samples = some_model(spec), some_files(tmp_path)
    trunk = Trunk(model.net, PREPROCESS, way=way, maps=True)
    assert trunk.computed_by.startswith(way)
    (batch,) = Loader(samples, PREPROCESS, batch_size=9).epoch()
    pixels = batch.images.permute(0, 2, 3, 1).contiguous().numpy()
    (values,) = trunk.stream([pixels])
    expected = of_the_network(model, samples)
    np.testing.assert_allclose(values.pool, expected, atol=2e-5 * max(1.0, float(np.abs(expected).max())))
    with torch.no_grad():
        maps = model.net.features(Normalize(PREPROCESS)(batch.images))[-2].numpy()
    assert values.maps is not None
    np.testing.assert_allclose(values.maps, maps, rtol=2e-3, atol=2e-3)
    turned = np.concatenate([v.pool for v in trunk.stream([pixels[5:], pixels[:5]])])
    if way == "openvino":  # each picture alone: its neighbours change no bit
        assert (turned == np.concatenate([values.pool[5:], values.pool[:5]])).all()


@pytest.mark.parametrize(
    "spec", ["resnet20,order=pre", "resnet18,width=8,attention=se", "resnet18,width=32,norm=group"]
)
def test_networks_that_are_not_translated_are_computed_by_torch(tmp_path: Path, spec: str) -> None:
    model, samples = some_model(spec), some_files(tmp_path)
    cache = FeatureCache(model)
    assert cache.computed_by.startswith("torch")
    np.testing.assert_allclose(cache.compute(samples).pool(), of_the_network(model, samples), rtol=1e-3, atol=1e-4)


def test_rows_are_computed_once_and_found_by_content(tmp_path: Path, computed: list[int]) -> None:
    model, samples = some_model(), some_files(tmp_path / "one")
    first = FeatureCache(model).compute(samples, views=training_views(3))
    assert sum(computed) == 27
    computed.clear()
    again = FeatureCache(model).compute(samples, views=training_views(3))
    assert not computed
    assert all((first.pool(view) == again.pool(view)).all() for view in range(3))
    assert (first.pool(0) != first.pool(1)).any()
    assert (first.pool(0) != first.pool(2)).any()

    (tmp_path / "two").mkdir()
    moved = [path.rename(tmp_path / "two" / f"x{path.name}") for path in reversed(samples.paths or ())]
    fresh = some_files(tmp_path / "three", 10).paths or ()  # nine are the same pictures
    other = Samples(("z",), np.zeros(19, np.int64), paths=(*moved, *fresh))
    grown = FeatureCache(model).compute(other)
    assert sum(computed) == 1
    assert (grown.pool()[:9] == first.pool()[::-1]).all()
    assert (grown.labels == 0).all()


def test_another_trunk_or_preprocessing_has_its_own_rows(tmp_path: Path) -> None:
    model, samples = some_model(), some_files(tmp_path)
    folders = {FeatureCache(model).folder}
    folders.add(FeatureCache(some_model(seed=1)).folder)
    header = Header(model.header.spec, Preprocess(size=32, resize=40), model.header.classes)
    folders.add(FeatureCache(Model(model.net, header)).folder)
    assert len(folders) == 3
    head = some_model()
    torch.nn.init.zeros_(head.net.fc.weight)  # another head, the same trunk
    assert FeatureCache(head).folder in folders
    assert len(FeatureCache(head).compute(samples)) == 9


class StoppedError(Exception):
    pass


def test_an_interrupted_computation_goes_on(
    tmp_path: Path, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, samples = some_model(), some_files(tmp_path, 40)
    monkeypatch.setattr("resnetkit.finetune.features.WRITE_EVERY", 16)
    seen = 0

    def stop(count: int) -> None:
        nonlocal seen
        seen += count
        if seen >= 32:
            raise StoppedError

    with pytest.raises(StoppedError):
        FeatureCache(model).compute(samples, maps=True, advance=stop)
    computed.clear()
    resumed = FeatureCache(model).compute(samples, maps=True)
    assert 0 < sum(computed) <= 24
    whole = FeatureCache(model, folder=tmp_path / "elsewhere").compute(samples, maps=True)
    assert (resumed.pool() == whole.pool()).all()
    places = np.arange(40)
    assert (resumed.maps(0, places) == whole.maps(0, places)).all()
    assert resumed.maps(0, places).shape == (40, 32, 2, 2)


def test_a_half_written_row_does_not_count(tmp_path: Path) -> None:
    table = Table(tmp_path / "t", (3,), "<f4")
    keys = [bytes([n]) * KEY_BYTES for n in range(4)]
    table.append(keys[:2], np.arange(6).reshape(2, 3))
    with (tmp_path / "t.rows").open("ab") as file:
        file.write(b"torn")
    with (tmp_path / "t.keys").open("ab") as file:
        file.write(b"torn too")
    again = Table(tmp_path / "t", (3,), "<f4")
    assert len(again) == 2
    again.append(keys[2:], np.arange(6, 12).reshape(2, 3))
    last = Table(tmp_path / "t", (3,), "<f4")
    assert last.places([keys[3], b"?" * KEY_BYTES, keys[0]]).tolist() == [3, -1, 0]
    assert (last.rows() == np.arange(12).reshape(4, 3)).all()


def test_unreadable_files_are_named_and_left_out(tmp_path: Path) -> None:
    model, samples = some_model(), some_files(tmp_path)
    paths = samples.paths or ()
    paths[2].write_bytes(paths[2].read_bytes()[:60])
    paths[5].unlink()
    features = FeatureCache(model).compute(samples, views=training_views(2))
    assert set(features.unreadable) == {paths[2], paths[5]}
    assert features.indices.tolist() == [0, 1, 3, 4, 6, 7, 8]
    assert features.labels.tolist() == [0, 1, 0, 1, 0, 1, 2]
    assert features.pool(1).shape == (7, 64)
    stacked, labels = features.stacked()
    assert stacked.shape == (14, 64)
    assert labels.tolist() == features.labels.tolist() * 2
    with pytest.raises(DataError, match=r"5\.png"):
        FeatureCache(model).compute(samples, strict=True)
    with pytest.raises(DataError, match="none of the 1 pictures"):
        FeatureCache(model).compute(samples.subset(np.array([2])))


def test_mirrored_is_the_mirror_image_and_crops_depend_on_the_content(tmp_path: Path) -> None:
    samples = some_files(tmp_path, 2)
    out, mirrored = np.empty((2, 32, 32, 3), np.uint8)
    PLAIN.write(out, samples.source(0), PREPROCESS, b"a")
    MIRRORED.write(mirrored, samples.source(0), PREPROCESS, b"a")
    assert (mirrored == out[:, ::-1]).all()

    def crop(view: View, key: bytes) -> bytes:
        view.write(out, samples.source(0), PREPROCESS, key)
        return out.tobytes()

    one = View("crop", 0, seed=3)
    assert crop(one, b"a") == crop(one, b"a")
    assert len({crop(one, b"a"), crop(one, b"b"), crop(View("crop", 1, seed=3), b"a"), crop(View("crop"), b"a")}) == 4


def test_the_clock_ends_at_a_view_and_never_before_the_first(tmp_path: Path) -> None:
    features = FeatureCache(some_model()).compute(some_files(tmp_path), views=training_views(4), until=0.0)
    assert [view.kind for view in features.views] == ["plain"]


def test_the_disk_is_bounded(tmp_path: Path) -> None:
    samples = some_files(tmp_path)
    first = FeatureCache(some_model())
    first.compute(samples)
    assert first.affordable_views(10**6, views=5) == 5
    assert first.affordable_views(10**6, views=5, maps=True) == 5
    assert first.affordable_views(10**7, views=5) == 1
    assert first.affordable_views(10**9, views=5) == 0
    second = FeatureCache(some_model(seed=1), cache_gb=3e-6)
    second.compute(samples)
    assert second.folder.is_dir()
    assert not first.folder.is_dir()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    cache = FeatureCache(some_model())
    assert len(cache.compute(some_files(tmp_path / "pictures"))) == 9
    folder = cache.folder
    cache.close()
    assert not folder.exists()


def test_pictures_in_memory() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    images[3] = images[1]
    model = some_model()
    features = FeatureCache(model).compute(Samples(("a",), np.zeros(5, np.int64), images=images))
    assert (features.pool()[3] == features.pool()[1]).all()
    assert (features.pool()[3] != features.pool()[0]).any()

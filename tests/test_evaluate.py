"""The evaluation: each picture counts once, batches don't change the result, protocols follow their definition."""

import csv
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.data.dataset import open_dataset
from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.parts import record
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, UsageError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.modelfile import Header, Model
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec


@pytest.fixture(scope="module")
def model(cifar_subset):
    torch.manual_seed(0)
    spec = parse_spec("resnet20")
    net = build(spec)
    with torch.no_grad():
        for size in range(3):  # running statistics of real pictures
            net(torch.tensor(cifar_subset[0].images[100 * size : 100 * size + 100]).permute(0, 3, 1, 2) / 255)
    return Model(net.eval(), Header(spec, Preprocess(size=32), cifar_subset[1].classes))


def test_the_number_does_not_depend_on_batches_or_workers(model, split_folder, cifar_subset):
    paths = tuple(sorted((split_folder / "test").rglob("*.*")))
    labels = np.array([cifar_subset[1].classes.index(path.parent.name) for path in paths])
    samples = Samples(cifar_subset[1].classes, labels, paths=paths)
    results = [
        evaluate(model, samples, batch_size=size, workers=workers).to_dict()
        for size, workers in ((1, 0), (7, 3), (120, 1), (999, 2))
    ]
    assert all(result == results[0] for result in results)
    assert results[0]["images"] == 120
    assert 70 < results[0]["top1_error_percent"] <= 100
    assert results[0]["top5_error_percent"] < results[0]["top1_error_percent"]


def test_as_many_pictures_at_once_as_fit(model, cifar_subset, monkeypatch):
    """250 pictures of CIFAR by default; fewer if their feature maps need too much memory. A given number is kept."""
    seen: list[int] = []
    handle = model.net.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    try:
        together = evaluate(model, cifar_subset[0])
        assert seen == [250, 50]
        seen.clear()
        monkeypatch.setattr("resnetkit.evaluation.batches.BYTES", 70 * 8 * 4 * 16 * 32 * 32)
        apart = evaluate(model, cifar_subset[0])
        assert seen == [70, 70, 70, 70, 20]
    finally:
        handle.remove()
    assert apart.to_dict() == together.to_dict()


def test_memory_and_files_agree(model, cifar_subset, tmp_path):
    from PIL import Image

    test = cifar_subset[1]
    paths = []
    for i, image in enumerate(test.images):
        paths.append(tmp_path / f"{i:03d}.png")
        Image.fromarray(image).save(paths[-1])
    on_disk = Samples(test.classes, test.labels, paths=tuple(paths))
    assert evaluate(model, on_disk).to_dict() == evaluate(model, test).to_dict()


def test_classes_are_matched_by_name(model, cifar_subset):
    test = cifar_subset[1]
    turned = Samples(test.classes[::-1], 9 - test.labels, images=test.images)
    assert evaluate(model, turned).to_dict() == evaluate(model, test).to_dict()
    numbered = Samples(tuple("0123456789"), test.labels, images=test.images)
    assert evaluate(model, numbered).to_dict() == evaluate(model, test).to_dict()
    some = replace(test.subset(np.flatnonzero(test.labels < 3)), classes=test.classes[:3])
    assert set(evaluate(model, some).per_class) == set(test.classes[:3])
    other = replace(test, classes=("zebra", *test.classes[1:]))
    with pytest.raises(DataError, match="1 of 10 classes are not the model's: 'zebra'"):
        evaluate(model, other)
    ants = Samples(("ants", "bees"), np.array([0, 1]), images=test.images[:2])
    with pytest.raises(DataError) as caught:
        evaluate(model, ants)
    assert str(caught.value) == (
        "the model has other classes ('airplane', 'automobile', 'bird' and 7 more) than these pictures "
        "('ants', 'bees'). Give a model with these classes, or train one: resnetkit train DATA --init MODEL"
    )


def test_a_result_says_what_was_counted_and_warns_of_training_pictures(model, split_folder, caplog):
    dataset = open_dataset(str(split_folder), val_fraction=0.4)
    data = {"fingerprint": dataset.train.fingerprint(), "split": dataset.split, "pictures": record(dataset.train)}
    trained = Model(model.net, replace(model.header, data=data))
    result = evaluate(trained, split_folder)
    assert (result.part, result.of, result.images, result.trained_on) == ("test", str(split_folder), 120, 0)
    (split_folder / "test").rename(split_folder.parent / "kept")
    result = evaluate(trained, str(split_folder))
    assert (result.part, result.images) == ("val", 120)
    assert repr(result).startswith("Evaluation(120 val pictures, top-1 error ")
    assert not caplog.records
    for data in (str(split_folder), dataset):
        result = evaluate(trained, data, split="train")
        assert (result.trained_on, result.images) == (180, 180)
    result = evaluate(trained, dataset.train.subset(np.arange(5)))
    assert (result.part, result.trained_on) == ("", 5)
    assert [record.getMessage() for record in caplog.records] == 3 * [
        "these pictures trained the model: on new pictures, the error may be much larger"
    ]
    with pytest.raises(UsageError, match="`data` is a list; give a name, a path, a Dataset or Samples"):
        evaluate(trained, [split_folder])


@pytest.mark.parametrize("views", ["single", "multi-scale"])
def test_it_says_how_far_it_is_and_may_be_ended(model, cifar_subset, views):
    counts = []
    evaluate(model, cifar_subset[1].subset(np.arange(10)), views=views, batch_size=4, advance=counts.append)
    assert counts == ([4, 4, 2] if views == "single" else 10 * [1])

    def stop(count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, cifar_subset[1], views=views, batch_size=4, advance=stop)


def test_unreadable_files_are_named_and_not_counted(model, tmp_path, cifar_subset):
    from PIL import Image

    Image.fromarray(cifar_subset[1].images[0]).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"\x89PNG")
    paths = (tmp_path / "bad.png", tmp_path / "good.png")
    samples = Samples(cifar_subset[1].classes, np.array([0, 0]), paths=paths)
    for views in ("single", "multi-scale"):
        result = evaluate(model, samples, views=views)
        assert result.images == 1
        assert list(result.unreadable) == [tmp_path / "bad.png"]
        with pytest.raises(DataError, match=r"bad\.png"):
            evaluate(model, samples, views=views, strict=True)
    with pytest.raises(DataError, match="none of the 1 pictures can be read"):
        evaluate(model, samples.subset(np.array([0])))


def test_ten_crops_average_the_probabilities_of_ten_crops(cifar_subset):
    torch.manual_seed(1)
    spec = parse_spec("resnet20")
    preprocess = Preprocess(size=28, resize=32)
    model = Model(build(spec).eval(), Header(spec, preprocess, cifar_subset[1].classes))
    test = cifar_subset[1].subset(np.arange(5))
    loss = 0.0
    for image, label in zip(test.images, test.labels, strict=True):
        crops = [image[y : y + 28, x : x + 28] for y, x in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
        crops += [crop[:, ::-1] for crop in crops]
        inputs = torch.from_numpy(np.stack([preprocess.normalize(np.ascontiguousarray(crop)) for crop in crops]))
        with torch.no_grad():
            loss -= model.net(inputs).softmax(1).mean(0)[label].log().item() / 5
    assert evaluate(model, test, views="ten-crop").loss == pytest.approx(loss, rel=1e-5)


def test_ten_crops_of_whole_pictures_are_refused(model, cifar_subset):
    with pytest.raises(UsageError, match=r"`views` ten-crop: .* give `views` single"):
        evaluate(model, cifar_subset[1], views="ten-crop")


def test_multi_scale_sees_the_whole_picture_at_five_sizes(shared):
    torch.manual_seed(2)
    spec = parse_spec("resnet18,width=8,depths=1-1-1-1,classes=5")
    preprocess = Preprocess(size=64, resize=72)
    model = Model(build(spec).eval(), Header(spec, preprocess, tuple("abcde")))
    path = shared / "data" / "photos" / "n01440764_tench.JPEG"
    samples = Samples(tuple("abcde"), np.array([3]), paths=(path,))
    picture = open_picture(path)
    probabilities = []
    for side in (64, 73, 110, 137, 183):  # 224, 256, 384, 480, 640 times 64 / 224
        pixels = preprocess.scaled(picture, side)
        assert min(pixels.shape[:2]) == side
        assert max(pixels.shape[:2]) > side, "no crop"
        with torch.no_grad():
            probabilities.append(model.net(torch.from_numpy(preprocess.normalize(pixels))[None]).softmax(1))
    expected = -torch.cat(probabilities).mean(0)[3].log().item()
    assert evaluate(model, samples, views="multi-scale").loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "right"), [("resnet18", 72), ("resnet50", 82)])
def test_published_weights_get_their_photographs_right(name, right, shared):
    weights = torch.load(shared / "weights" / f"imagenet-{name}.pth", weights_only=True)
    net = build(name)
    net.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in weights.items()})
    with (shared / "data" / "photos" / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    classes = tuple(str(i) for i in range(1000))
    paths = tuple(Path(shared / "data" / "photos" / row["file"]) for row in rows)
    samples = Samples(classes, np.array([int(row["class_index"]) for row in rows]), paths=paths)
    model = Model(net.eval(), Header(parse_spec(name), Preprocess(size=224, resize=256), classes))
    assert evaluate(model, samples, batch_size=20).top1_error_percent == 100 - right


@pytest.mark.parametrize("views", ["single", "ten-crop", "multi-scale"])
def test_a_picture_in_memory_that_can_not_be_used_is_named(model, views):
    net = Model(model.net, replace(model.header, preprocess=Preprocess(size=32, resize=36)))
    samples = Samples(model.header.classes, np.array([0, 1]), np.zeros((2, 1, 70_000, 3), np.uint8))
    with pytest.raises(DataError, match=r"picture 0: 70000 x 1 pixels is too long and narrow to resize; cut it"):
        evaluate(net, samples, views=views)


@pytest.mark.parametrize("views", ["single", "ten-crop", "multi-scale"])
def test_records_say_what_was_counted_of_each_picture(model, views, tmp_path, cifar_subset):
    """In the order of the pictures, without unreadable ones; and the parts are merged to the whole."""
    from PIL import Image

    test = cifar_subset[1].subset(np.arange(7))
    paths = tuple(tmp_path / f"{i}.png" for i in range(7))
    for i, (path, image) in enumerate(zip(paths, test.images, strict=True)):
        Image.fromarray(image).save(path)
        if i in (0, 3):
            path.write_bytes(b"\x89PNG")
    cropped = Model(model.net, replace(model.header, preprocess=Preprocess(size=32, resize=36)))
    samples = Samples(test.classes, test.labels, paths=paths)
    assert evaluate(cropped, samples, views=views).records is None
    result = evaluate(cropped, samples, views=views, records=3, batch_size=2)
    kept = result.records
    assert kept.indices.tolist() == [1, 2, 4, 5, 6]
    assert kept.labels.tolist() == test.labels[kept.indices].tolist()
    assert kept.classes.shape == kept.probabilities.shape == (5, 3)
    counted = np.zeros((10, 10), int)
    np.add.at(counted, (kept.labels, kept.classes[:, 0]), 1)
    assert np.array_equal(counted, result.confusion)
    assert (np.diff(kept.probabilities) <= 0).all()
    assert (kept.probabilities.sum(axis=1) < 1).all()

    every = evaluate(cropped, samples, views=views, records=99, batch_size=2)
    assert every.records.probabilities.sum(axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    right = every.records.classes == every.records.labels[:, None]
    assert -np.log(every.records.probabilities[right]).mean() == pytest.approx(result.loss, rel=1e-5)

    parts = []
    for places in (np.array([6, 1, 2, 3]), np.array([0, 4, 5])):
        part = evaluate(cropped, samples.subset(places), views=views, records=3, batch_size=1)
        parts.append(replace(part, records=part.records.within(places)))
    merged = Evaluation.merge(parts)
    assert merged.to_dict() == result.to_dict()
    assert np.array_equal(merged.records.indices, kept.indices)
    assert np.array_equal(merged.records.classes, kept.classes)
    assert np.allclose(merged.records.probabilities, kept.probabilities, atol=1e-5)


def test_a_number_of_records_that_can_not_be_meant_is_refused(model, cifar_subset):
    with pytest.raises(UsageError, match="`records` is -1; it must be a whole number, at least 0"):
        evaluate(model, cifar_subset[1], records=-1)


def test_evaluating_imports_neither_training_nor_kernels():
    code = (
        "import pkgutil, sys\n"
        "from importlib import import_module\n"
        "import resnetkit.evaluation\n"
        "found = [m.name for m in pkgutil.iter_modules(resnetkit.evaluation.__path__, 'resnetkit.evaluation.')]\n"
        "for name in found: import_module(name)\n"
        "print('resnetkit.evaluation.evaluate' in found)\n"
        "print([name for name in sys.modules if name.startswith(('resnetkit.train', 'resnetkit.kernels'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n[]\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"views": "nine"}, "`views` is 'nine'; choose one of single, ten-crop, multi-scale"),
        ({"device": "gpu"}, "`device` is 'gpu'; choose one of auto, cpu, cuda"),
        ({"records": "3"}, "`records` is '3'; it must be a whole number, at least 0"),
        ({"batch_size": 2.5}, "`batch_size` is 2.5; it must be a whole number, at least 1"),
        ({"batch_size": 0, "views": "ten-crop"}, "`batch_size` is 0; it must be a whole number, at least 1"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message, cifar_subset, run_folder):
    samples = cifar_subset[1].subset(np.arange(4))
    samples = replace(samples, classes=("a", "b"), labels=samples.labels % 2)
    with pytest.raises(UsageError, match=re.escape(message)):
        evaluate(str(run_folder), samples, **arguments)

"""Batches: equal for any workers and any start, in channels_last memory; unreadable files are named."""

import logging
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data.decoding.pictures import open_picture
from resnetkit.data.loader import BATCHES_AHEAD, Loader
from resnetkit.data.order import Order
from resnetkit.data.samples import Samples
from resnetkit.data.transforms.augment import Augment
from resnetkit.data.transforms.normalize import Normalize
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import DataError, UsageError
from scenes import scene

TINY = Preprocess(size=8)
CLASSES = ("cat", "dog", "frog")


def in_memory(count=22, size=8, channels=3):
    rng = np.random.default_rng(0)
    return Samples(
        CLASSES, rng.integers(0, 3, count), images=rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    )


@pytest.fixture
def on_disk(tmp_path):
    """Samples of 22 files of several sizes."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(22):
        paths.append(tmp_path / f"{i:02}.png")
        Image.fromarray(rng.integers(0, 256, (12 + i % 5, 14 - i % 3, 3), dtype=np.uint8)).save(paths[-1])
    return Samples(CLASSES, np.arange(22) % 3, paths=tuple(paths))


def record(batches):
    return [(b.number, b.indices.tolist(), b.labels.tolist(), b.images.numpy().tobytes()) for b in batches]


def decoding_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("resnetkit-prefetch")]


def test_a_batch_is_a_channels_last_view_of_the_pictures():
    samples = in_memory()
    batches = list(Loader(samples, TINY, batch_size=5).epoch())
    assert [len(b.images) for b in batches] == [5, 5, 5, 5, 2]
    assert [b.number for b in batches] == [0, 1, 2, 3, 4]
    first = batches[0]
    assert (first.images.dtype, first.labels.dtype, first.indices.dtype) == (torch.uint8, torch.int64, torch.int64)
    assert first.images.shape == (5, 3, 8, 8)
    assert first.images.is_contiguous(memory_format=torch.channels_last)
    assert np.array_equal(np.concatenate([b.images.permute(0, 2, 3, 1) for b in batches]), samples.images)
    assert np.array_equal(np.concatenate([b.labels for b in batches]), samples.labels)
    assert np.concatenate([b.indices for b in batches]).tolist() == list(range(22))
    first.images.zero_()
    assert samples.images.any()  # writing into a batch leaves the samples alone


def test_files_come_out_as_preprocess_makes_them(on_disk):
    for batch in Loader(on_disk, TINY, batch_size=6, workers=2).epoch():
        for image, index in zip(batch.images, batch.indices, strict=True):
            expected = TINY.pixels(open_picture(on_disk.paths[index]))
            assert np.array_equal(image.permute(1, 2, 0), expected)


@pytest.mark.parametrize("resize", [None, 10])
def test_memory_and_files_give_the_same_pixels(tmp_path, resize):
    samples, preprocess = in_memory(6), Preprocess(size=8, resize=resize)
    paths = []
    for i, image in enumerate(samples.images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    files = Samples(CLASSES, samples.labels, paths=tuple(paths))
    for workers in (0, 2):
        assert record(Loader(samples, preprocess, batch_size=4, workers=workers).epoch()) == record(
            Loader(files, preprocess, batch_size=4, workers=workers).epoch()
        )


def test_grey_pictures_have_one_channel(on_disk):
    grey = Preprocess(size=8, mode="L", mean=(0.4,), std=(0.2,))
    for samples in (in_memory(channels=1), in_memory(channels=3), on_disk):
        batch = next(iter(Loader(samples, grey, batch_size=4, augment=Augment("pad")).epoch()))
        assert batch.images.shape == (4, 1, 8, 8)
        assert Normalize(grey)(batch.images).shape == (4, 1, 8, 8)
    kept = next(iter(Loader(in_memory(channels=1), grey, batch_size=4).epoch())).images
    assert np.array_equal(kept.permute(0, 2, 3, 1), in_memory(channels=1).images[:4])
    colours = next(iter(Loader(in_memory(channels=1), TINY, batch_size=4).epoch())).images
    assert torch.equal(colours, kept.expand(4, 3, 8, 8))


@pytest.mark.parametrize(
    ("crop", "size"),
    [
        (None, None),
        ("none", None),
        ("pad", None),
        ("pad", 6),
        ("random-resized", None),
        ("random-resized", 6),
        ("scale-jitter", None),
    ],
)
@pytest.mark.parametrize("where", ["memory", "larger memory", "files"])
def test_workers_and_start_change_nothing(on_disk, crop, size, where):
    samples = {"memory": in_memory(), "larger memory": in_memory(size=11), "files": on_disk}[where]
    augment = Augment(crop, size=size, padding=2, jitter=(9, 12), pca_color=0.1) if crop else None

    def batches(epoch, workers=0, first_batch=0):
        loader = Loader(samples, TINY, batch_size=5, augment=augment, shuffle=True, seed=7, workers=workers)
        return record(loader.epoch(epoch, first_batch))

    other = Loader(samples, TINY, batch_size=5, augment=Augment("none", flip=False), shuffle=True, seed=7)
    side = size or TINY.size
    assert next(other.epoch(3, augment=augment)).images.shape == (5, 3, side, side)
    whole = batches(3)
    if augment:
        assert record(other.epoch(3, augment=augment)) == whole
    assert len(whole) == 5
    assert batches(3, workers=1) == batches(3, workers=3) == whole
    for first_batch in (1, 4, 5):
        assert (
            batches(3, workers=3, first_batch=first_batch) == batches(3, first_batch=first_batch) == whole[first_batch:]
        )
    assert sorted(i for _, indices, _, _ in whole for i in indices) == list(range(22))
    assert [indices for _, indices, _, _ in batches(4)] != [indices for _, indices, _, _ in whole]


def test_seed_and_epoch_decide_order_and_augmentation():
    samples = in_memory()
    seen = set()
    for seed in range(3):
        loader = Loader(samples, TINY, batch_size=22, augment=Augment("pad"), shuffle=True, seed=seed)
        for epoch in range(3):
            (batch,) = loader.epoch(epoch)
            seen.add((tuple(batch.indices.tolist()), batch.images.numpy().tobytes()))
    assert len({order for order, _ in seen}) == len({pixels for _, pixels in seen}) == 9
    unshuffled = Loader(samples, TINY, batch_size=22, augment=Augment("pad"))
    (first,), (second,) = unshuffled.epoch(0), unshuffled.epoch(1)
    assert torch.equal(first.indices, second.indices)
    assert not torch.equal(first.images, second.images)


@pytest.mark.parametrize(
    ("count", "drop_last", "sizes"), [(10, True, [5, 5]), (11, True, [5, 5]), (11, False, [5, 5, 1]), (4, False, [4])]
)
def test_length_and_last_batch(count, drop_last, sizes):
    loader = Loader(in_memory(count), TINY, batch_size=5, drop_last=drop_last)
    assert len(loader) == len(sizes)
    assert [len(batch.labels) for batch in loader.epoch()] == sizes


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_named_counted_and_skipped(on_disk, caplog, workers):
    broken = {1: b"", 10: b"text", 11: b"text", 12: b"text", 13: b"text", 14: b"text"}
    for i, content in broken.items():
        on_disk.paths[i].write_bytes(content)
    loader = Loader(on_disk, TINY, batch_size=5, workers=workers)
    with caplog.at_level(logging.WARNING, "resnetkit"):
        first = list(loader.epoch(0))
        second = list(loader.epoch(1))
    assert [b.number for b in first] == [0, 1, 3, 4]  # the third is all broken; the numbers stay
    assert [len(b.images) for b in first] == [4, 5, 5, 2]
    assert first[0].indices.tolist() == [0, 2, 3, 4]
    assert first[0].labels.tolist() == [0, 2, 0, 1]
    expected = TINY.pixels(open_picture(on_disk.paths[2]))
    assert np.array_equal(first[0].images[1].permute(1, 2, 0), expected)
    assert record(first) == record(second)
    assert list(loader.unreadable) == [on_disk.paths[i] for i in broken]
    assert loader.unreadable[on_disk.paths[1]] == "the file is empty (0 bytes)"
    assert [r.getMessage() for r in caplog.records][:1] == [f"skipped {on_disk.paths[1]}: the file is empty (0 bytes)"]
    assert len(caplog.records) == 6  # each once, over two epochs
    assert record(loader.epoch(0, first_batch=3)) == record(first[2:])


@pytest.mark.parametrize("workers", [0, 2])
def test_strict_stops_at_the_first_unreadable_file(on_disk, workers):
    for i in (8, 16):
        on_disk.paths[i].write_bytes(b"")
    batches = Loader(on_disk, TINY, batch_size=5, workers=workers, strict=True).epoch()
    assert next(batches).number == 0
    with pytest.raises(
        DataError, match=r"08\.png: the file is empty \(0 bytes\)\. Remove the file, or leave out `strict` to skip it"
    ):
        next(batches)
    assert decoding_threads() == []


def test_a_picture_that_cannot_be_resized_is_named(tmp_path):
    Image.new("RGB", (40_000, 2)).save(tmp_path / "line.png")
    loader = Loader(Samples(CLASSES, np.array([0]), paths=(tmp_path / "line.png",)), TINY, batch_size=1)
    assert list(loader.epoch()) == []
    assert loader.unreadable == {tmp_path / "line.png": "40000 x 2 pixels is too long and narrow to resize; cut it"}


@pytest.mark.parametrize("workers", [0, 3])
def test_wrong_use_is_not_taken_for_an_unreadable_file(on_disk, workers):
    loader = Loader(on_disk, TINY, batch_size=5, augment=Augment("scale-jitter", jitter=(4, 9)), workers=workers)
    with pytest.raises(UsageError, match="`jitter` starts at 4, less than the crop"):
        next(iter(loader.epoch()))
    assert decoding_threads() == []


def test_a_closed_epoch_leaves_no_threads_and_did_not_run_ahead(on_disk, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "resnetkit.data.loader.open_picture",
        lambda path, **options: opened.append(path) or open_picture(path, **options),
    )
    loader = Loader(on_disk, TINY, batch_size=2, workers=2)
    batches = loader.epoch()
    next(batches)
    assert decoding_threads()
    batches.close()
    assert decoding_threads() == []
    assert len(opened) <= 2 * (1 + BATCHES_AHEAD)
    for _ in loader.epoch():
        break
    assert decoding_threads() == []
    assert len(list(loader.epoch())) == 11
    assert decoding_threads() == []


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_alternating_flips_mirror_every_picture_in_every_other_epoch(on_disk, source):
    samples = in_memory() if source == "memory" else on_disk

    def pictures(epoch, *, first_batch=0, **options):
        loader = Loader(samples, TINY, batch_size=5, shuffle=True, seed=3, **options)
        batches = loader.epoch(epoch, first_batch)
        return {int(i): image for batch in batches for i, image in zip(batch.indices, batch.images, strict=True)}

    upright = pictures(0)
    turned = []
    for epoch in range(3):
        varied = pictures(epoch, alternate_flip=True)
        for i, image in varied.items():
            assert torch.equal(image, upright[i]) or torch.equal(image, upright[i].flip(2))
        turned.append([not torch.equal(varied[i], upright[i]) for i in range(22)])
    assert 4 < sum(turned[0]) < 18
    assert turned[1] == [not mirrored for mirrored in turned[0]]
    assert turned[2] == turned[0]
    whole = pictures(2, alternate_flip=True)
    for i, image in pictures(2, first_batch=3, alternate_flip=True).items():
        assert torch.equal(image, whole[i])


def test_two_epochs_may_be_read_at_once(on_disk):
    loader = Loader(on_disk, TINY, batch_size=5, augment=Augment("random-resized"), workers=2, shuffle=True)
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    assert record(first for first, _ in pairs) == record(loader.epoch(0))
    assert record(second for _, second in pairs) == record(loader.epoch(1))


def test_nothing_is_opened_before_it_is_needed():
    count = 100_000
    samples = Samples(CLASSES, np.zeros(count, np.int64), paths=tuple(Path(f"missing/{i}.jpg") for i in range(count)))
    loader = Loader(samples, TINY, batch_size=128, shuffle=True, workers=2)
    assert len(loader) == 782
    batches = loader.epoch(first_batch=780)
    assert list(batches) == []
    assert len(loader.unreadable) == 128 + 100_000 % 128
    assert set(loader.unreadable.values()) == {"no such file"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch_size": 0}, "`batch_size` is 0; it must be at least 1"), ({"workers": -1}, "`workers` is -1")],
)
def test_numbers_out_of_range_are_refused_before_anything_is_read(changes, message):
    with pytest.raises(UsageError, match=message):
        Loader(in_memory(), TINY, **{"batch_size": 4, **changes})
    with pytest.raises(DataError, match="there are no pictures to load"):
        Loader(in_memory(0), TINY, batch_size=4)
    with pytest.raises(UsageError, match="`first_batch` is 7; an epoch has 6 batches"):
        Loader(in_memory(), TINY, batch_size=4).epoch(0, 7)


def test_a_picture_in_memory_that_cannot_be_resized_is_named_by_its_number():
    samples = Samples(CLASSES, np.zeros(2, np.int64), images=np.zeros((2, 2, 40_000, 3), np.uint8))
    for workers in (0, 2):
        with pytest.raises(DataError, match=r"^picture 0: 40000 x 2 pixels is too long and narrow to resize"):
            next(Loader(samples, TINY, batch_size=2, workers=workers).epoch())
    assert decoding_threads() == []


@pytest.mark.parametrize("every_pixel", [False, True])
@pytest.mark.parametrize("size", [8, 13])
def test_normalize_equals_the_reference_to_the_bit(every_pixel, size):
    rng = np.random.default_rng(0)
    preprocess = Preprocess(size=8, mean=tuple(rng.random(3 * 64)) if every_pixel else TINY.mean)
    pixels = rng.integers(0, 256, (6, size, size, 3), dtype=np.uint8)
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    before = images.clone()
    inputs = Normalize(preprocess)(images)
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(inputs, torch.from_numpy(preprocess.normalize(pixels)))
    assert torch.equal(Normalize(preprocess)(images.contiguous()), inputs)
    assert torch.equal(images, before)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_normalize_in_parts_is_normalize(monkeypatch, count):
    monkeypatch.setattr("resnetkit.data.transforms.normalize.CACHED_VALUES", 2 * 8 * 8 * 3 + 1)
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    inputs = Normalize(TINY)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert torch.equal(inputs, torch.from_numpy(TINY.normalize(pixels)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_normalize_on_a_gpu_equals_the_reference_to_the_bit():
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    for preprocess in (Preprocess(size=16), Preprocess(size=16, mean=tuple(np.linspace(0, 1, 768)))):
        assert torch.equal(Normalize(preprocess, "cuda")(values).cpu(), Normalize(preprocess)(values))


def test_photographs_load_the_same_with_threads(shared):
    paths = tuple(sorted((shared / "data" / "photos").glob("*.JPEG"))[:10])
    samples = Samples(CLASSES, np.zeros(10, np.int64), paths=paths)
    preprocess = Preprocess(size=64, resize=72)
    whole = [
        record(
            Loader(
                samples, preprocess, batch_size=4, augment=Augment("random-resized"), shuffle=True, workers=workers
            ).epoch()
        )
        for workers in (0, 2)
    ]
    assert whole[0] == whole[1]
    assert sum(len(indices) for _, indices, _, _ in whole[0]) == 10


def gaps(paths, preprocess, augment, seed=3):
    """Return, for each picture, the differences of the loader's crop from Pillow's crop of the whole picture."""
    samples = Samples(CLASSES, np.zeros(len(paths), np.int64), paths=tuple(paths))
    loader = Loader(samples, preprocess, batch_size=len(paths), augment=augment, seed=seed)
    (batch,) = loader.epoch()
    order = Order(len(paths), batch_size=len(paths), seed=seed)
    for position, path in enumerate(paths):
        picture, rng = open_picture(path, mode=preprocess.mode), order.picture_rng(0, position)
        cut = augment.cut(picture.size, preprocess, rng)
        exact = np.asarray(picture.resize((preprocess.size,) * 2, Image.Resampling.BILINEAR, box=cut.box))
        exact = exact.reshape(preprocess.size, preprocess.size, -1)[:, :: -1 if cut.mirrored else 1]
        exact = augment.shift_colors(exact[None], rng)[0]
        yield np.abs(batch.images[position].permute(1, 2, 0).numpy().astype(int) - exact)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crops_of_files_are_those_of_whole_pictures(tmp_path, suffix, mode):
    paths = [tmp_path / f"{i}.{suffix}" for i in range(24)]
    for i, path in enumerate(paths):
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        scene(100 + i, 121 - i, seed=i).save(path, exif=exif, **({"subsampling": "4:4:4"} if suffix == "jpg" else {}))
    preprocess = Preprocess(size=96, mode=mode, mean=(0.5,) * len(mode), std=(0.2,) * len(mode))
    for gap in gaps(paths, preprocess, Augment("random-resized", pca_color=0.1 if mode == "RGB" else 0)):
        # At the border of a crop the exact path's filter sees a pixel or two of what lies outside.
        assert gap[3:-3, 3:-3].max() <= 1
    for gap in gaps(paths, preprocess, Augment("scale-jitter", jitter=(96, 120))):
        assert gap[3:-3, 3:-3].max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("crop", ["random-resized", "scale-jitter"])
def test_crops_of_photographs_are_near_the_exact_ones(shared, tmp_path, crop):
    photographs = sorted((shared / "data" / "photos").glob("*.JPEG"))[::5]
    for i, path in enumerate(photographs):
        with Image.open(path) as picture:
            picture.convert("RGB").resize((1500, 1125)).save(tmp_path / f"{i}.jpg", quality=90, subsampling="4:2:0")
    augment = Augment(crop)
    own = [gap.mean() for gap in gaps(photographs, Preprocess(size=224, resize=256), augment)]
    large = [gap.mean() for gap in gaps(sorted(tmp_path.glob("*.jpg")), Preprocess(size=224, resize=256), augment)]
    # Levels of 255, on average over a crop; a few of these are decoded at a half, and most of the large at less.
    assert max(own) < 2.5
    assert max(large) < 2.5


@pytest.mark.parametrize("workers", [0, 2])
def test_truncated_jpegs_are_skipped_wherever_the_crop_is(tmp_path, workers):
    paths = [tmp_path / f"{i}.jpg" for i in range(12)]
    for i, path in enumerate(paths):
        scene(64, 48, seed=i).save(path)
        if i % 2:
            path.write_bytes(path.read_bytes()[:-100])
    samples = Samples(CLASSES, np.zeros(12, np.int64), paths=tuple(paths))
    loader = Loader(samples, TINY, batch_size=12, augment=Augment("random-resized"), workers=workers)
    (batch,) = loader.epoch()
    assert batch.indices.tolist() == [0, 2, 4, 6, 8, 10]
    assert list(loader.unreadable) == paths[1::2]
    assert all(
        reason.startswith("broken or incomplete (image file is truncated") for reason in loader.unreadable.values()
    )

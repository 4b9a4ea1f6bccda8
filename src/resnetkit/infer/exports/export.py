"""Export a model to a file for ONNX Runtime, OpenVINO or torch.export. The file is kept only if it equals the model."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from resnetkit.data.published.huggingface import first_line
from resnetkit.display import line
from resnetkit.errors import ExportError, ModelFileError, UsageError
from resnetkit.files import expanded
from resnetkit.infer.comparison import MOST_PICTURES, read_pixels
from resnetkit.infer.exports.formats import FILE_FORMATS, Format
from resnetkit.infer.exports.parity import BATCH_SIZES, Gap, measure
from resnetkit.infer.exports.replacing import replaced_together
from resnetkit.infer.quantizing.accuracy import AccuracyCheck, Verdict, check_loss
from resnetkit.infer.quantizing.calibration import TuningPictures, read_tuning_pictures
from resnetkit.modelfile import Model, load
from resnetkit.precision import exact_float32

if TYPE_CHECKING:
    from resnetkit.infer.network import ExportedNetwork, ExportOutput
    from resnetkit.infer.quantizing.quantize import Quantized

MOST_JUDGED = 500
"""Most pictures that judge the accuracy of an int8 file. One picture of 500 is 0.2 percentage points."""
TOLERANCE = 1e-3
"""The largest gap (see Gap) of a file that is kept. Rounding alone makes gaps of 1e-7 to 1e-5."""


@dataclass(frozen=True)
class Exported:
    """An exported file: its input, its output, and the differences from the model's output."""

    path: Path
    files: tuple[Path, ...]
    """All files of the export: an .xml file of OpenVINO has its weights in a .bin file of the same name."""
    input: str
    """Name, type and shape: `pixels: uint8 (batch, 32, 32, 3)`."""
    output: str
    """Name, type and shape: `probabilities: float32 (batch, 10)`."""
    gap: Gap
    integers: "Quantized[Verdict] | None" = None
    """Of an int8 file: how many layers stayed in float, and the accuracy. `gap` then includes the rounding to int8."""

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
    """Write a model to `path` in the format `to`: onnx (.onnx), openvino (.xml and .bin) or pt2 (.pt2, torch.export).

    The input of the file is `images`, float32 (batch, channels, size, size), normalised as by the model's Preprocess,
    and the output is `logits`. With `with_preprocess`, the input is `pixels`, uint8 (batch, size, size, channels),
    resized and cropped but not normalised, and the output is `probabilities`, at the model's temperature as in
    `predict`. `output` chooses another output: logits, probabilities, pool or c5 (see ExportOutput). A batch may have
    any size. All numbers are float32, batch normalisation is folded into the convolutions, and the metadata contains
    the model's header. By default, `path` is the model's name in the working folder.

    Before the file is kept, ONNX Runtime, OpenVINO or torch.export runs it in float32, with one picture at a time and
    in batches, and its outputs are compared with the model's. The pictures are those of `check` (see
    pictures.read_pixels), or 16 that come with this package. The file is kept only if no gap (see Gap) is larger than
    `tolerance`. An existing file is replaced only with `force`.

    With `calibrate` (cifar10, a folder or a CSV file), the file of OpenVINO computes in 8-bit integers. The ranges of
    its activations come from these pictures. `max_top1_loss` then replaces `tolerance`: it is the allowed loss of
    top-1 accuracy on other pictures in percentage points, by what the pictures of `check` show (see
    accuracy.AccuracyCheck). Without `check`, a part of `calibrate` is used for it. Layers that lose too much accuracy
    stay in float32 (see quantize).

    `say` is called with a line of text before each step that takes long.

    Raises ExportError if the gap is too large or the file can't be made or written; UsageError for wrong use and for
    packages that are not installed; ModelFileError and DataError if the model or pictures can't be read.
    """
    if to not in FILE_FORMATS:
        raise UsageError(f"`to` is {to!r}; choose one of {', '.join(FILE_FORMATS)}")
    check_loss(max_top1_loss)
    name = None if isinstance(model, Model) else expanded(model)
    target = target_of(path, name, FILE_FORMATS[to].suffixes, to, force=force)
    if missing := [name for name in FILE_FORMATS[to].packages if find_spec(name) is None]:
        raise UsageError(f"`to` {to} needs {' and '.join(missing)}: pip install 'resnetkit[export]'")

    from resnetkit.infer.network import ExportedNetwork, ExportOutput, folded

    output = output or ("probabilities" if with_preprocess else "logits")
    if output not in get_args(ExportOutput):
        raise UsageError(f"`output` is {output!r}; choose one of {', '.join(get_args(ExportOutput))}")
    loaded = model if isinstance(model, Model) else load(model)
    preprocess = loaded.header.preprocess
    if loaded.header.spec.in_channels != preprocess.channels:
        raise ModelFileError(
            f"the network's input has {loaded.header.spec.in_channels} channels, but its preprocessing makes "
            f"{preprocess.mode} pictures with {preprocess.channels}; such a model can't be exported"
        )
    tuning_pictures = None
    if calibrate is not None:
        if loaded.header.multilabel:
            raise UsageError("`calibrate`: 8-bit integers are judged for models with one class; export in float32")
        if to != "openvino" or output not in ("logits", "probabilities"):
            raise UsageError("`calibrate` is for `to` openvino with `output` logits or probabilities")
        tuning_pictures = read_tuning_pictures(loaded.header, _text(check), _text(calibrate), most=MOST_JUDGED)
        tolerance = inf
    pixels = tuning_pictures.judged if tuning_pictures else read_pixels(check, preprocess)
    net = deepcopy(loaded.net).eval().float().cpu()
    temperature, multilabel = loaded.header.temperature, loaded.header.multilabel
    source = ExportedNetwork(
        net, preprocess, output=output, with_preprocess=False, temperature=temperature, multilabel=multilabel
    )
    expected = _computed(source, preprocess.normalize(pixels))
    network = ExportedNetwork(
        folded(net),
        preprocess,
        output=output,
        with_preprocess=with_preprocess,
        temperature=temperature,
        multilabel=multilabel,
    )
    header, integers = loaded.header.to_json(), None
    say(f"making {target.name}")
    with replaced_together(target, suffixes=FILE_FORMATS[to].suffixes) as file:
        if tuning_pictures:
            integers = _write_integers(
                network, file, header, tuning_pictures, expected, max_top1_loss=max_top1_loss, say=say
            )
        else:
            _write(network, file, header, to=to)
        some = pixels[:MOST_PICTURES]
        say(f"comparing it with the model on {len(some)} pictures")
        inputs = some if with_preprocess else preprocess.normalize(some)
        gap = measure(
            FILE_FORMATS[to].open(file), inputs, expected[:MOST_PICTURES], output=output, multilabel=multilabel
        )
        if not gap.within(tolerance):
            raise ExportError(
                f"{target} was not kept: its outputs differ from the model's too much ({describe(gap)}; "
                f"{tolerance:g} is allowed). An older file was not changed"
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
    """Return a text that describes a gap."""
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


def target_of(
    path: str | Path | None, model: str | Path | None, suffixes: Sequence[str], to: Format, *, force: bool
) -> Path:
    """Return the path of the first file of an export, by default MODEL's name in the working folder.

    `model` is None for a model in memory. Raises UsageError, before any work is done, if it can't be written there.
    """
    first, *others = suffixes
    if path is None:
        if model is None:
            raise UsageError("a model in memory has no file name; give a path")
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
            raise UsageError(f"{target} needs the file {other}, but another file has that name; give another name")
    return target


def _computed(network: "ExportedNetwork", images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the model's output for normalised images, computed by torch in float32."""
    import torch

    with torch.inference_mode(), exact_float32():
        return torch.cat([network(batch) for batch in torch.from_numpy(images).split(max(BATCH_SIZES))]).numpy()


def _write(network: "ExportedNetwork", file: Path, header: str, *, to: Format) -> None:
    try:
        FILE_FORMATS[to].write(network, file, header)
    except OSError:
        raise
    except Exception as error:  # the errors of the three exporters have no common base class
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
) -> "Quantized[Verdict]":
    """Write OpenVINO's files in 8-bit integers, and judge them by `expected`, the model's output."""
    from resnetkit.infer.quantizing.quantize import quantize

    preprocess = network.preprocess
    calibration, judged = tuning_pictures.calibration, tuning_pictures.judged
    assert calibration is not None  # read_tuning_pictures was given `calibrate`
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
            f"{file.name} was not kept: in 8-bit integers, with {len(made.layers_in_float)} of {made.layers} layers in "
            f"float, it has {made.verdict}. `max_top1_loss` allows {max_top1_loss:g}; calibrate with more pictures "
            "like those to be predicted, or export in float32, without `calibrate`"
        )
    return made

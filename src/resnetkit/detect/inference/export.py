"""Export a detector as two files for OpenVINO or ONNX Runtime, kept only if they find what the detector finds."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnetkit.data.detection.samples import Detections
from resnetkit.detect.evaluate import decoded
from resnetkit.detect.files import DetectorModel, load_detector
from resnetkit.detect.inference.finders import Compute, GraphFinder
from resnetkit.detect.inference.graphs import INPUTS, OUTPUTS, PROPOSALS, REGIONS, as_graphs, example
from resnetkit.detect.model import DIVISIBLE
from resnetkit.display import line
from resnetkit.errors import DataError, ExportError, ModelFileError, UsageError
from resnetkit.evaluation.detection.overlap import overlaps
from resnetkit.files import HEADER_KEY, expanded
from resnetkit.infer.backends.openvino_backend import openvino_core
from resnetkit.infer.backends.several_outputs import open_graph
from resnetkit.infer.choice import BackendName, Choice
from resnetkit.infer.comparison import PACKAGED
from resnetkit.infer.exports.export import target_of
from resnetkit.infer.exports.formats import Format, onnx_of, save_openvino
from resnetkit.infer.exports.replacing import replaced_together
from resnetkit.infer.finding import find_pictures
from resnetkit.modelfile import Header
from resnetkit.precision import exact_float32

if TYPE_CHECKING:
    from resnetkit.detect.inference.quantizing import DetectionVerdict
    from resnetkit.infer.quantizing.quantize import Quantized

MAX_AP_LOSS = 0.5
"""Percentage points of AP50, and of COCO's AP, that 8-bit integers may cost by default."""
REGIONS_SUFFIX = ".regions"
"""Before the suffix of the second file: cells.xml and cells.regions.xml."""
SUFFIXES: Mapping[Format, tuple[str, ...]] = {
    "openvino": (".xml", ".bin", f"{REGIONS_SUFFIX}.xml", f"{REGIONS_SUFFIX}.bin"),
    "onnx": (".onnx", f"{REGIONS_SUFFIX}.onnx"),
}
BACKENDS: Mapping[Format, BackendName] = {"openvino": "openvino", "onnx": "onnxruntime"}
TOLERANCE = 1e-3
"""Largest difference of a graph's outputs from the detector's that is allowed, in standard deviations of the output."""
BOX_TOLERANCE, SCORE_TOLERANCE = 0.1, 1e-3
"""Largest difference of an edge, in pixels of the picture, and of a probability, with which detections are the same."""
LEAST_AGREEMENT = 0.99
"""Least share of the detections that must be the same. Rounding alone may exchange two overlapping boxes with nearly
equal probabilities."""
MOST_PICTURES = 16


@dataclass(frozen=True)
class DetectorGap:
    """How much exported graphs differ from their detector, on some pictures."""

    pictures: int
    values: float
    """Largest difference of an output, in standard deviations of this output."""
    detections: int
    """What the detector finds."""
    agreement: float
    """Share of the detections that the graphs find, too: same class, equal box and probability (see BOX_TOLERANCE)."""

    @property
    def passes(self) -> bool:
        """Whether the graphs are kept. NaN does not pass."""
        return self.values <= TOLERANCE and self.agreement >= LEAST_AGREEMENT

    def __str__(self) -> str:
        """Such as `values differ by up to 1.2e-05 standard deviations, 310 of 310 detections are the same`."""
        return (
            f"values differ by up to {self.values:.1e} standard deviations, {round(self.agreement * self.detections)} "
            f"of {self.detections} detections on {self.pictures} pictures are the same"
        )


@dataclass(frozen=True)
class ExportedDetector:
    """The files of an exported detector, and how much they differ from it."""

    path: Path
    files: tuple[Path, ...]
    gap: DetectorGap
    """For int8, the gap of the files in float32 from which the int8 file was made."""
    integers: "Quantized[DetectionVerdict] | None" = None
    """Of an int8 file: how many layers stayed in float, and the average precision."""

    def __repr__(self) -> str:
        return line(type(self), str(self.path), f"int8: {self.integers.verdict}" if self.integers else str(self.gap))


def export_detector(
    model: str | Path | DetectorModel,
    path: str | Path | None = None,
    *,
    to: Format,
    check: str | Path | None = None,
    calibrate: str | None = None,
    max_ap_loss: float = MAX_AP_LOSS,
    force: bool = False,
    say: Callable[[str], None] = lambda line: None,
) -> ExportedDetector:
    """Write a detector to `path` and a second file beside it, in the format `to`: openvino or onnx.

    cells.xml is the graph from a normalised picture, float32 (1, 3, h, w), to features, objectness and offsets of all
    anchors; cells.regions.xml that from pooled regions to logits and offsets (see graphs). h and w are any multiples of
    DIVISIBLE. Fixed normalisations are folded into the convolutions. The metadata contains the header of the model
    file, so that `open_exported` needs nothing else.

    Before the files are kept, both are computed on the pictures of `check` (a picture or a folder), or on three that
    come with this package, and compared with the detector: their outputs, and what they find (see DetectorGap).

    With `calibrate`, pictures with boxes, the first graph of OpenVINO computes in 8-bit integers: its train part
    calibrates, and its val part judges. The files are kept if neither AP50 nor COCO's AP is more than `max_ap_loss`
    percentage points lower than in float32; the header in the files contains the verdict ("int8").

    Raises ExportError if they differ too much or can't be made or written, UsageError for wrong use, ModelFileError and
    DataError if the model or the pictures can't be read.
    """
    if to not in SUFFIXES:
        raise UsageError(f"`to` is {to!r}; detectors are exported to {' or '.join(SUFFIXES)}")
    if calibrate is not None and to != "openvino":
        raise UsageError("`calibrate` is for `to` openvino")
    check_ap_loss(max_ap_loss)
    name = None if isinstance(model, DetectorModel) else expanded(model)
    target = target_of(path, name, SUFFIXES[to], to, force=force)
    loaded = model if isinstance(model, DetectorModel) else load_detector(model)
    pictures = read_pictures(check)
    say(f"making {target.name} and {regions_file(target).name}")
    with replaced_together(target, suffixes=SUFFIXES[to]) as file:
        write_graphs(loaded, file, to=to)
        say(f"comparing them with the detector on {len(pictures)} pictures")
        gap = compare(loaded, open_files(file, Choice(BACKENDS[to]), loaded.header), pictures)
        if not gap.passes:
            raise ExportError(f"{target} was not kept: {gap}, which is too much. An older file was not changed")
        integers = _write_integers(loaded, file, calibrate, max_ap_loss, say) if calibrate is not None else None
    return ExportedDetector(target, tuple(target.with_suffix(suffix) for suffix in SUFFIXES[to]), gap, integers)


def _write_integers(
    model: DetectorModel, file: Path, data: str, max_ap_loss: float, say: Callable[[str], None]
) -> "Quantized[DetectionVerdict]":
    """Replace the first of OpenVINO's files by one in 8-bit integers. Raises ExportError if it costs too much AP."""
    from resnetkit.detect.inference.quantizing import PrecisionCheck, find_in, measured, quantize_detector, read_judging

    pictures = read_judging(model.header, data)
    say(pictures.about)
    finder = open_files(file, Choice("openvino"), model.header)
    reference = find_in(finder, pictures.judged)
    check = PrecisionCheck(pictures.judged, measured(reference, pictures.judged), max_ap_loss)
    say(f"float32: {check.judge(reference)}")
    folder = file.parent / "integers"
    folder.mkdir()
    made = quantize_detector(file, folder / file.name, finder, pictures, check, say=say)
    if not made.verdict.passes:
        raise ExportError(
            f"{file.name} was not kept: in 8-bit integers, with {len(made.layers_in_float)} of {made.layers} layers in "
            f"float, it has {made.verdict}, and `max_ap_loss` allows {max_ap_loss:g}; calibrate with more pictures, or "
            "export in float32, without `calibrate`"
        )
    told = replace(model.header, detector={**model.header.detector, "int8": made.verdict.to_dict()})
    write_header(folder / file.name, file, told)
    return made


def check_ap_loss(max_ap_loss: float) -> None:
    """Raise UsageError if `max_ap_loss` is not from 0 to 100."""
    if not 0 <= max_ap_loss <= 100:
        raise UsageError(f"`max_ap_loss` is {max_ap_loss:g}; give percentage points from 0 to 100")


def regions_file(file: Path) -> Path:
    """Return the second file of an exported detector, by the path of the first."""
    return file.with_suffix(f"{REGIONS_SUFFIX}{file.suffix}")


def write_graphs(model: DetectorModel, file: Path, *, to: Format) -> None:
    """Write the two graphs of a detector: to `file`, and to the file that `regions_file` names."""
    header = model.header.to_json()
    dynamic: dict[str, Any] = {
        PROPOSALS: {2: DIVISIBLE * _dim("rows"), 3: DIVISIBLE * _dim("columns")},
        REGIONS: {0: torch.export.Dim("regions")},
    }
    names = {PROPOSALS: {2: "height", 3: "width"}, REGIONS: {0: "regions"}}
    graphs = zip((PROPOSALS, REGIONS), as_graphs(model.net), example(model.net), strict=True)
    for (name, graph, inputs), place in zip(graphs, (file, regions_file(file)), strict=True):
        try:
            with torch.no_grad():
                program = torch.export.export(graph, (inputs,), dynamic_shapes=(dynamic[name],))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # it contains folder names of this machine
            made = onnx_of(program, header, inputs=[INPUTS[name]], outputs=OUTPUTS[name], dynamic=(names[name],))
            if to == "openvino":
                save_openvino(made, place, header)
            else:
                place.write_bytes(made.SerializeToString())
        except OSError:
            raise
        except Exception as error:  # the errors of the exporters have no common base class
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise ExportError(f"{to} can't be made of this detector: {reason}") from error


def _dim(name: str) -> Any:
    return torch.export.Dim(name, max=1024)


def open_files(
    file: Path, choice: Choice, header: Header, *, cache: Path | None = None, integers: Path | None = None
) -> GraphFinder:
    """Return what finds objects with the graphs at `file` and beside it. Raises ModelFileError if one is missing.

    `integers` is a graph in 8-bit integers that replaces the first one.
    """
    second = regions_file(file)
    for path in (file, second):
        if not path.is_file():
            raise ModelFileError(f"{path} does not exist; export the detector again: both files belong together")
    proposals = open_graph(choice, integers or file, cache=None if integers else cache)
    regions = open_graph(_exact(choice), second, cache=cache)
    return GraphFinder(header, proposals, regions, source=str(file))


def _exact(choice: Choice) -> Choice:
    """Return the choice for the second graph, which stays in float: its products are faster so where int8 is slow."""
    return replace(choice, precision="float32") if choice.precision == "int8" else choice


def write_header(source: Path, target: Path, header: Header) -> None:
    """Write a graph of OpenVINO to `target` with another header."""
    import openvino

    graph = openvino_core().read_model(source)
    graph.set_rt_info(header.to_json(), [HEADER_KEY])
    openvino.save_model(graph, target, compress_to_fp16=False)


def read_header(file: Path) -> Header:
    """Return the header of the model file in an exported detector. Raises ModelFileError if there is none."""
    try:
        if file.suffix == ".onnx":
            import onnx

            metadata = onnx.load_model(file, load_external_data=False).metadata_props
            text = next(entry.value for entry in metadata if entry.key == HEADER_KEY)
        else:
            text = str(openvino_core().read_model(file).get_rt_info([HEADER_KEY]).astype(str))
        header = Header.from_json(text, source=str(file))
    except (StopIteration, RuntimeError, OSError, ValueError, json.JSONDecodeError) as error:
        raise ModelFileError(f"{file} is not a detector of resnetkit export; export it again") from error
    if header.kind != "detector":
        raise ModelFileError(f"{file} contains a {header.kind}; give an exported detector")
    return header


def read_pictures(check: str | Path | None) -> list[NDArray[np.uint8]]:
    """Return pictures to compare on, uint8 (h, w, 3): up to MOST_PICTURES of a file or folder, or three of the package.

    Raises DataError if none can be read.
    """
    if check is None:
        with Image.open(PACKAGED) as sheet:
            whole = np.array(sheet.convert("RGB"))
        return [whole, np.ascontiguousarray(whole[:72]), np.ascontiguousarray(whole[:, 50:])]
    found = [path for path, reason in find_pictures(expanded(check)) if reason is None]
    places = np.linspace(0, len(found) - 1, min(len(found), MOST_PICTURES)).round().astype(int)
    pictures: list[NDArray[np.uint8]] = []
    reason = "it contains no pictures"
    for place in places:
        try:
            pictures.append(decoded(found[place]))
        except DataError as error:
            reason = str(error)
    if not pictures:
        raise DataError(f"{check} has no picture to compare with ({reason})")
    return pictures


def compare(model: DetectorModel, finder: GraphFinder, pictures: Sequence[NDArray[np.uint8]]) -> DetectorGap:
    """Compare the outputs of both graphs, and what they find, with those of the detector."""
    proposals, regions = (_as_compute(graph) for graph in as_graphs(model.net))
    source = GraphFinder(model.header, proposals, regions)
    values, found, agreeing = 0.0, 0, 0
    for pixels in pictures:
        with torch.inference_mode(), exact_float32():
            batch = source.batch(pixels)
            expected = proposals(batch.tensors.numpy())
            values = max(values, _gap(finder.proposals(batch.tensors.numpy()), expected))
            pooled, boxes = source.between(batch, expected)
            if len(boxes):
                values = max(values, _gap(finder.regions(pooled), regions(pooled)))
            (of_model,) = model.net([torch.from_numpy(pixels).permute(2, 0, 1)])
        there = Detections(*(of_model[name].numpy() for name in ("boxes", "labels", "scores")))
        found += len(there)
        agreeing += count_same(there, finder(pixels))
    return DetectorGap(len(pictures), values, found, agreeing / found if found else 1.0)


def count_same(expected: Detections, found: Detections) -> int:
    """Return how many of the detections `expected` are also in `found`: class, box and probability are the same."""
    if not len(expected) or not len(found):
        return 0
    best = np.where(expected.labels[:, None] == found.labels, overlaps(expected.boxes, found.boxes), -1.0).argmax(
        axis=1
    )
    near = (np.abs(expected.boxes - found.boxes[best]) <= BOX_TOLERANCE).all(axis=1)
    same = near & (expected.labels == found.labels[best])
    return int((same & (np.abs(expected.scores - found.scores[best]) <= SCORE_TOLERANCE)).sum())


def _as_compute(graph: torch.nn.Module) -> Compute:
    def compute(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return tuple(output.numpy() for output in graph(torch.from_numpy(inputs)))

    return compute


def _gap(found: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> float:
    """Return the largest difference of two lists of outputs, in standard deviations; infinity for other shapes, NaN."""
    largest = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            return inf
        gap = float(np.abs(one - other).max()) / (float(other.std()) or 1.0)
        largest = max(largest, gap if gap == gap else inf)
    return largest

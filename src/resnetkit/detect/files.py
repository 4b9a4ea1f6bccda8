"""Model files of detectors: written and read with the format of every model file."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from resnetkit.detect.model import Detector, make_anchors
from resnetkit.detect.spec import DetectorSpec
from resnetkit.display import line
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.modelfile import Header, inspect, model_file, write_tensors
from resnetkit.models.tensors import compare, fill

SPEC, THRESHOLDS = "spec", "thresholds"
"""Entries of `Header.detector`: the fields of the DetectorSpec; class -> the least probability of a detection that
validation found to be best."""


@dataclass(frozen=True)
class DetectorModel:
    """A detector and the header of its model file."""

    net: Detector
    """In evaluation mode, float32, on the CPU."""
    header: Header

    def __repr__(self) -> str:
        return line(type(self), *self.header.in_words)

    @property
    def thresholds(self) -> Mapping[str, float]:
        """Class -> the least probability of a detection that is worth showing, as far as validation found one."""
        return self.header.detector.get(THRESHOLDS, {})


def header_of(net: Detector, classes: tuple[str, ...], **fields: Any) -> Header:
    """Return the header of a detector's model file; `fields` are other fields of Header."""
    return Header(net.trunk, net.preprocess, classes, kind="detector", detector={SPEC: net.spec.to_dict()}, **fields)


def save_detector(path: str | Path, net: Detector, header: Header) -> None:
    """Write a detector to `path`, whole or not at all. Raises ModelFileError if it does not fit the header."""
    spec = DetectorSpec.from_dict(header.detector[SPEC])
    if (net.trunk, net.spec, net.preprocess, net.classes) != (
        header.spec,
        spec,
        header.preprocess,
        len(header.classes),
    ):
        raise ModelFileError(f"{path}: the detector is not that of the header; give the header of this detector")
    write_tensors(Path(path), net.state_dict(), header)


def load_detector(model: str | Path) -> DetectorModel:
    """Return the detector in a model file, or in a run folder, in evaluation mode on the CPU.

    Raises ModelFileError for a file that is missing or broken, or contains another kind of model.
    """
    from safetensors.torch import load_file

    header = inspect(model)
    if header.kind != "detector":
        raise ModelFileError(
            f"{model} contains a {header.kind}; give a detector, such as one from resnetkit detect train"
        )
    path = model_file(model)
    net = empty_detector(header, source=str(path))
    tensors = load_file(path)
    if misfit := compare(net.state_dict(), tensors):
        raise ModelFileError(f"{path}: the weights do not fit the detector in its header: {misfit}")
    fill(net, tensors, source=str(path))
    return DetectorModel(net.to(memory_format=torch.channels_last).eval(), header)


def empty_detector(header: Header, *, source: str) -> Detector:
    """Return the detector of a header on the meta device, without values.

    Raises ModelFileError, which names `source`, for a header that describes no detector.
    """
    values = header.detector.get(SPEC)
    if not isinstance(values, Mapping):
        raise ModelFileError(f"{source} has a broken header (no detector in it); get the file again")
    try:
        spec = DetectorSpec.from_dict(values)
        with torch.device("meta"):
            net = Detector(header.spec, spec, header.preprocess, classes=len(header.classes))
    except UsageError as error:
        raise ModelFileError(f"{source} has a broken header ({error}); get the file again") from error
    net.rpn.anchor_generator = make_anchors(spec)  # its constants are tensors that no file contains
    return net


def spec_of(header: Header) -> DetectorSpec:
    """Return what the detector of a header has around its trunk. Raises UsageError for a broken header."""
    return DetectorSpec.from_dict(header.detector[SPEC])


def with_thresholds(header: Header, thresholds: Mapping[str, float]) -> Header:
    """Return the header with the best thresholds of classes, by name."""
    return replace(header, detector={**header.detector, THRESHOLDS: dict(thresholds)})

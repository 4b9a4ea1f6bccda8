"""`resnetkit export`: write a model as a file for other programs, and compare it with the model before it is kept."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

from resnetkit.commands.detect_computing import is_detector
from resnetkit.commands.parser import MODEL, Parser
from resnetkit.commands.printing import print_json
from resnetkit.errors import UsageError

if TYPE_CHECKING:
    from resnetkit.infer.exports.export import Exported
    from resnetkit.infer.quantizing.quantize import Quantized


def run(argv: Sequence[str]) -> int:
    """Export; print the input and the output of the file, and how much it differs from the model."""
    parser = Parser(
        "export",
        "MODEL --to onnx|openvino|pt2 [options]",
        "Write a model as a file for ONNX Runtime, OpenVINO or torch.export: a classifier for batches of any size, a "
        "detector for a picture of any size. Its output on pictures is compared with that of the model; if they differ "
        "too much, no file is written.",
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--to",
        type=Literal["onnx", "openvino", "pt2"],
        help="onnx: one .onnx file; openvino: an .xml file with its weights in a .bin; pt2: a file of torch.export",
    )
    parser.add_argument(
        "--out", type=str, metavar="PATH", help="file to write; unset: the name of MODEL, in this folder"
    )
    parser.add_argument(
        "--with_preprocess",
        action="store_true",
        help="the input is uint8 pixels (batch, size, size, channels), the output probabilities; without this flag, "
        "the input is normalised float32 images (batch, channels, size, size), the output logits",
    )
    parser.add_argument(
        "--output",
        type=Literal["logits", "probabilities", "pool", "c5"],
        help="output of the file; c5 is the last feature map, pool its mean over all positions",
    )
    parser.add_argument(
        "--check", type=str, metavar="DATA", help="pictures for the comparison; unset: some in this package"
    )
    parser.add_argument(
        "--int8", action="store_true", help="compute in 8-bit integers, except in layers that lose too much accuracy"
    )
    parser.add_argument(
        "--calibrate",
        type=str,
        metavar="DATA",
        help="pictures for the calibration of --int8, which measures the ranges of the numbers; for a detector, "
        "pictures with boxes, whose val part judges",
    )
    parser.add_argument(
        "--max_top1_loss", type=float, metavar="POINTS", help="points of accuracy that --int8 may lose (unset: 0.5)"
    )
    parser.add_argument(
        "--max_ap_loss",
        type=float,
        metavar="POINTS",
        help="points of AP50, and of COCO's AP, that --int8 may cost a detector (unset: 0.5)",
    )
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    if given["to"] is None:
        raise UsageError("--to missing; it takes onnx, openvino or pt2")
    if given["int8"] and not given["calibrate"]:
        raise UsageError("--int8 needs --calibrate DATA: some hundred pictures like those of the later use")
    for flag in ("calibrate", "max_top1_loss", "max_ap_loss"):
        if given[flag] is not None and not given["int8"]:
            raise UsageError(f"--{flag.replace('_', '-')} needs --int8; give both or neither")

    if is_detector(given["model"]):
        return _export_detector(given)
    if given["max_ap_loss"] is not None:
        raise UsageError("--max-ap-loss is for detectors; a classifier has --max-top1-loss")
    from resnetkit.infer.exports.export import describe, export

    done = export(
        given["model"],
        given["out"],
        to=given["to"],
        with_preprocess=given["with_preprocess"],
        output=given["output"],
        check=given["check"],
        calibrate=given["calibrate"],
        force=given["force"],
        say=lambda line: print(f"resnetkit export: {line}", file=sys.stderr, flush=True),
        **({} if given["max_top1_loss"] is None else {"max_top1_loss": given["max_top1_loss"]}),
    )
    if given["json"]:
        print_json(_document(done, given["to"]))
        return 0
    print(f"input     {done.input}")
    print(f"output    {done.output}")
    print(f"compared  {describe(done.gap)}")
    _print_integers(done.integers)
    print(f"file      {' and '.join(map(str, done.files))}")
    return 0


def _export_detector(given: dict[str, Any]) -> int:
    """Export a detector, and print how much the files differ from it."""
    for flag in ("with_preprocess", "output", "max_top1_loss"):
        if given[flag] is not None and given[flag] is not False:
            raise UsageError(f"--{flag.replace('_', '-')} is for classifiers; {given['model']} is a detector")
    from resnetkit.detect.inference.export import export_detector

    done = export_detector(
        given["model"],
        given["out"],
        to=given["to"],
        check=given["check"],
        calibrate=given["calibrate"],
        force=given["force"],
        say=lambda line: print(f"resnetkit export: {line}", file=sys.stderr, flush=True),
        **({} if given["max_ap_loss"] is None else {"max_ap_loss": given["max_ap_loss"]}),
    )
    if given["json"]:
        document = {"files": [str(file) for file in done.files], "to": given["to"], "compared": asdict(done.gap)}
        print_json({**document, "int8": _integers(done.integers)})
        return 0
    print(f"compared  {done.gap}")
    _print_integers(done.integers)
    print(f"files     {', '.join(map(str, done.files))}")
    return 0


def _document(done: "Exported", to: str) -> dict[str, object]:
    return {
        "files": [str(file) for file in done.files],
        "to": to,
        "input": done.input,
        "output": done.output,
        "compared": {
            "pictures": done.gap.pictures,
            "values": done.gap.values,
            "probabilities": done.gap.probabilities,
            "agreement": done.gap.agreement,
        },
        "int8": _integers(done.integers),
    }


def _integers(made: "Quantized[Any] | None") -> dict[str, Any] | None:
    """Return the fields of a graph in 8-bit integers for JSON."""
    if made is None:
        return None
    return {"layers": made.layers, "layers_in_float": list(made.layers_in_float), **made.verdict.to_dict()}


def _print_integers(made: "Quantized[Any] | None") -> None:
    if made:
        print(f"integers  {made.layers - len(made.layers_in_float)} of {made.layers} layers; {made.verdict}")

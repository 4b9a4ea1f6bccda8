"""`resnetkit convert`: weights of other projects to a model file, and a model file to torchvision's or timm's form."""

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from resnetkit.commands.parser import Parser, dashed
from resnetkit.commands.printing import on_one_line, print_json
from resnetkit.errors import UsageError
from resnetkit.progress import Advance, bar, ignore

if TYPE_CHECKING:
    from resnetkit.convert.checking import Check
    from resnetkit.convert.conversion import Conversion
    from resnetkit.convert.listing import Listing
    from resnetkit.data.transforms.preprocess import Preprocess
    from resnetkit.models.resnet import ResNet

MOST_CHECKED, FEW_CHECKED = 10_000, 2_000
"""Number of pictures for --check; the second number is for networks of more than CHEAP_MACS multiply-adds."""
CHEAP_MACS = 300e6
MOST_LISTED = 20
"""Largest number of groups without a network, and of objects, that --list prints; JSON contains all of them."""
MOST_WIDE = 100
"""Largest number of characters of an object in a line of --list."""
NOT_WITH_TO = ("model", "preprocess", "classes", "new_head", "check", "part", "strict")


def run(argv: Sequence[str]) -> int:
    """Convert, and print the network, preprocessing and classes, and which of them were assumed."""
    parser = Parser(
        "convert",
        "FILE [options], or resnetkit convert MODEL --to torchvision|timm",
        "Convert weights of other projects (.pth, .pt, .th, .bin, .safetensors, .h5, .keras, .npz) to a model file. "
        "Code in the file is not run. Tensor names of torchvision, timm, transformers, Keras, OpenMMLab, detectron2, "
        "fastai and well-known projects for CIFAR are recognised; other files are matched by the shapes of their "
        "layers. A model file is written only if all tensors fit.",
    )
    parser.add_argument("file", metavar="FILE", help="the weights; with --to, a model file or a run folder")
    parser.add_argument(
        "--model", type=str, metavar="NAME", help="the network, with changes after commas: resnet50_v1,classes=10"
    )
    parser.add_argument(
        "--preprocess",
        type=str,
        help="imagenet, imagenet-v2, imagenet-bicubic, caffe, cifar-imagenet, cifar10 or cifar100, with changes after "
        "commas: imagenet,size=288,resize=320,mean=0.5:0.5:0.5; or a JSON object of fields",
    )
    parser.add_argument(
        "--classes",
        type=str,
        metavar="FILE",
        help="file with class names, one per line or as JSON; or imagenet, cifar10, cifar100",
    )
    parser.add_argument(
        "--new_head", type=int, metavar="N", help="replace the last layer by a new one with random weights, N classes"
    )
    parser.add_argument(
        "--check",
        type=str,
        metavar="DATA",
        help="choose the preprocessing, and the network if several fit, by their errors on labelled pictures: "
        "cifar10 or cifar100 (must be in the cache), a folder or a .csv file",
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail instead of assuming something, such as layers matched by shapes"
    )
    parser.add_argument(
        "--to",
        type=Literal["torchvision", "timm"],
        help="write a model file as a state dict, which this project loads with strict=True",
    )
    parser.add_argument(
        "--out",
        type=str,
        metavar="FILE",
        help="file to write; unset: FILE's name in this folder; with --to, a .pth or .safetensors file",
    )
    parser.add_argument(
        "--part",
        type=str,
        metavar="NAME",
        help="network to use, if the file has several: model_ema, state_dict.encoder_k",
    )
    parser.add_argument(
        "--list", action="store_true", help="only show the content of the file, and which network it would become"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that exists")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.read(argv)
    if given["list"]:
        return _list(given["file"], given["part"], as_json=given["json"])
    if given["to"]:
        if others := [
            dashed(f"--{name}") for name in NOT_WITH_TO if given[name] is not None and given[name] is not False
        ]:
            raise UsageError(f"--to writes the model file without changes; leave out {' '.join(others)}")
        return _export(given["file"], given["to"], given["out"], force=given["force"], as_json=given["json"])

    from resnetkit.convert.conversion import convert

    advancing = bar("trying preprocessings and networks", None) if given["check"] else nullcontext(ignore)
    with advancing as advance:
        check = _check(given["check"], advance) if given["check"] else None
        done = convert(
            given["file"],
            model=given["model"],
            preprocess=given["preprocess"],
            classes=given["classes"],
            new_head=given["new_head"],
            out=given["out"],
            force=given["force"],
            strict=given["strict"],
            check=check,
            part=given["part"],
        )
    header = done.header
    if given["json"]:
        print_json(
            {
                "model": str(done.path),
                "network": done.model,
                "source": done.origin,
                "part": done.part,
                "other_parts": list(done.other_parts),
                "tensors": done.tensors,
                "new_head": done.new_head,
                "left_out": list(done.left_out),
                "assumed": list(done.assumed),
                "guessed": list(done.guessed),
                "classes_from": done.classes_from,
                "stated_error_percent": done.stated.error_percent if done.stated else None,
                "trials": [asdict(trial) for trial in done.trials],
                "spec": header.spec.to_dict(),
                "preprocess": header.preprocess.to_dict(),
                "classes": list(header.classes),
                "metrics": dict(header.metrics),
            }
        )
        return 0
    seen = header.preprocess
    shown = ", ".join(header.classes[:3]) + (", ..." if len(header.classes) > 3 else "")
    print(f"source      {done.origin}")
    print(f"network     {done.model}, {header.spec.parameters:,} parameters; all {done.tensors} tensors fit")
    fit = f"{seen.size} of {seen.shorter_side} pixels" if seen.fit == "crop" else f"{seen.fit} to {seen.size} pixels"
    print(f"pictures    {fit}, {seen.interpolation}, mean {_numbers(seen.mean)}")
    print(f"            std {_numbers(seen.std)}")
    origin = f"; from {done.classes_from} in the file" if done.classes_from else ""
    print(f"classes     {len(header.classes)}: {shown}{origin}")
    if done.assumed:
        flags = [f"--{name}" for name in done.assumed]
        what = " and ".join({"preprocess": "preprocessing", "classes": "class names"}[name] for name in done.assumed)
        overrides = f"{' and '.join(flags)} override{'' if len(flags) > 1 else 's'} it"
        print(f"assumed     {what}, as its author publishes: not in the file; {overrides}")
    for guess in done.guessed:
        print(f"assumed     {guess}")
    _print_trials(done, check)
    if done.new_head:
        print("last layer  new, with random weights: train it before you predict")
    if done.part:
        print(f"part        {done.part}")
    if done.other_parts:
        print(f"also in     {', '.join(done.other_parts)}; --part chooses the network to convert")
    if done.left_out:
        print(f"left out    {', '.join(done.left_out)}")
    print(f"model       {done.path}")
    return 0


def _check(data: str, advance: Advance) -> "Check":
    """Return the check on the labelled pictures of `data`. Nothing is downloaded."""
    from resnetkit.convert.checking import Check
    from resnetkit.data.dataset import open_dataset
    from resnetkit.data.published.cifar_archives import CIFARS
    from resnetkit.evaluation.evaluate import evaluate_net
    from resnetkit.files import cache_folder

    if data in CIFARS and not (cache_folder() / data).is_dir():
        raise UsageError(f"--check {data}: it is not in the cache; download it with: resnetkit data get {data}")
    part, samples = open_dataset(data).part("auto")

    def measure(net: "ResNet", preprocess: "Preprocess", classes: tuple[str, ...]) -> tuple[float, int]:
        most = MOST_CHECKED if net.spec.macs(preprocess.size) <= CHEAP_MACS else FEW_CHECKED
        some = samples.subset(np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(np.int64))
        result = evaluate_net(net, some.as_classes(classes), preprocess)
        advance(result.images)
        return result.top1_error_percent, result.images

    return Check(f"{part} pictures of {data}", len(samples), samples.classes, measure)


def _print_trials(done: "Conversion", check: "Check | None") -> None:
    """Print the errors that were measured, or that --check could measure."""
    if done.stated:
        error, place = done.stated
        offer = (
            "" if done.trials or "preprocess" not in done.assumed else "; --check DATA finds the preprocessing for it"
        )
        print(f"stated      an error of {error:.2f} % in {place} of the file{offer}")
    if check is None or not done.trials:
        return
    print(f"checked     on {done.trials[0].pictures:,} of {check.pictures:,} {check.name}:")
    for trial in done.trials:
        chosen = "  chosen" if trial is done.trial else ""
        print(f"            {trial.error_percent:5.2f} % {trial.model} {trial.preprocess}{chosen}")


def _list(file: str, part: str | None, *, as_json: bool) -> int:
    from resnetkit.convert.listing import list_file

    listing = list_file(file, part=part)
    if as_json:
        print_json(listing.document())
    else:
        for line in _lines(listing):
            print(on_one_line(line))
    return 0


def _lines(listing: "Listing") -> Iterator[str]:
    """Yield the lines for the content of a file: the tensors of networks, the other groups, and the objects."""
    from resnetkit.convert.listing import dtype_name

    count = sum(map(len, listing.groups.values()))
    yield f"file        {listing.path}: {listing.form}, {count:,} tensors"
    if listing.part is not None:
        yield f"network     in {listing.part or 'the file itself'}"
    if listing.others:
        yield f"also in     {', '.join(listing.others)}; --part chooses the network"
    if listing.left_out:
        yield f"left out    {', '.join(listing.left_out)}"
    first, *more = listing.taken_for.splitlines() or [""]
    yield f"taken for   {first}"
    yield from (f"            {line}" for line in more)
    short: list[str] = []
    for place, tensors in listing.groups.items():
        numbers = sum(prod(tensor.shape) for tensor in tensors.values())
        line = f"{place or 'tensors'} ({len(tensors):,} tensors, {numbers:,} numbers)"
        if place not in listing.networks and len(listing.groups) > 1:
            short.append(line)
            continue
        yield line
        width = max(map(len, map(on_one_line, tensors)))
        for name, tensor in tensors.items():
            shape = "×".join(map(str, tensor.shape)) or "scalar"
            yield f"  {on_one_line(name).ljust(width)}  {shape} {dtype_name(tensor)}"
    yield from _cut(short)
    if listing.objects:
        yield "objects"
        yield from _cut([f"  {name}  {_short(value)}" for name, value in listing.objects.items()])


def _short(value: object) -> str:
    text = on_one_line(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= MOST_WIDE else text[: MOST_WIDE - 3] + "..."


def _cut(lines: list[str]) -> Iterator[str]:
    yield from lines[:MOST_LISTED]
    if len(lines) > MOST_LISTED:
        yield f"  and {len(lines) - MOST_LISTED:,} more; --json prints all"


def _export(model: str, to: str, out: str | None, *, force: bool, as_json: bool) -> int:
    from resnetkit.convert.outgoing import constructor, write_state_dict
    from resnetkit.modelfile import inspect

    path: Path = write_state_dict(model, to=to, out=out, force=force)
    call = constructor(inspect(model).spec, to)
    if as_json:
        print_json({"file": str(path), "to": to, "network": call})
    else:
        print(f"{path} loads in {to} with strict=True into\n{call}")
    return 0


def _numbers(values: tuple[float, ...]) -> str:
    return (
        " ".join(f"{value:.4g}" for value in values) if len(values) < 4 else f"of every pixel ({len(values):,} values)"
    )

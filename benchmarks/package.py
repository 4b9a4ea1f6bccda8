"""Add the model of a run to the package, in half the space and with its errors on the test pictures in the header.

The script measures the run's best model and the smaller file on CIFAR's test pictures. It writes
src/resnetkit/models/packaged/NETWORK-DATA.safetensors only if both have the same number of errors.

    python benchmarks/package.py runs/resnet56 [--storage float32] [--to DIR]
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from resnetkit import __version__, modelfile
from resnetkit.data.parts import open_as_trained
from resnetkit.errors import DataError, ModelFileError, ResnetkitError, UsageError
from resnetkit.evaluation.evaluate import evaluate
from resnetkit.evaluation.metrics import Evaluation
from resnetkit.files import write_whole
from resnetkit.models.shipped import FOLDER
from resnetkit.models.spec import SPECS


def package(run: Path, folder: Path, *, storage: Literal["float32", "float16"] = "float16", workers: int = 2) -> Path:
    """Write the best model of `run`, rounded to `storage`, to `folder`, with its measured errors. Return the file.

    Raises ModelFileError, and writes no file, if the rounding changes the number of wrong test pictures; UsageError if
    the network is not a row of SPECS.
    """
    model = modelfile.load(run)
    name, data = model.header.recipe["model"], model.header.data["name"]
    if name not in SPECS:
        raise UsageError(f"{run} contains {name}, which is not a network that resnetkit models lists")
    test = open_as_trained(data, model.header.data).test
    if test is None:
        raise DataError(f"{data} has no test pictures")
    before = evaluate(model, test, workers=workers)
    header = replace(model.header, version=__version__)
    with TemporaryDirectory() as temporary:
        stored = Path(temporary) / "model.safetensors"
        modelfile.save(stored, model.net, header, storage=storage)
        rounded = modelfile.load(stored).net
        after = evaluate(modelfile.Model(rounded, header), test, workers=workers)
        if wrong(after) != wrong(before):
            raise ModelFileError(
                f"{run}: in {storage}, {wrong(after)} of {after.images} test pictures are wrong, and {wrong(before)} "
                "as trained; give --storage float32"
            )
        measured = {key: value for key, value in after.to_dict().items() if key != "per_class"}
        progress = {key: model.header.metrics[key] for key in ("step", "epoch") if key in model.header.metrics}
        header = replace(header, metrics=progress | {"part": "test"} | measured)
        modelfile.save(stored, model.net, header, storage=storage)
        path = folder / f"{name}-{data}.safetensors"
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, stored.read_bytes())
    return path


def wrong(result: Evaluation) -> int:
    """Return the number of pictures whose most probable class is not the label."""
    return result.images - int(result.confusion.diagonal().sum())


def main() -> int:
    """Package one run, and print the size and the error of the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="run folder, or model file")
    parser.add_argument("--storage", choices=["float16", "float32"], default="float16")
    parser.add_argument("--to", type=Path, default=FOLDER, metavar="DIR", help="unset: the package's own folder")
    given = parser.parse_args()
    try:
        path = package(given.run, given.to, storage=given.storage)
    except ResnetkitError as error:
        print(f"package: {error}", file=sys.stderr)
        return 1
    measured = modelfile.inspect(path).metrics
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {measured['top1_error_percent']:.2f} % of test pictures wrong")
    return 0


if __name__ == "__main__":
    sys.exit(main())

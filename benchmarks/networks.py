"""Common functions of the inference benchmarks: model files, the same networks in torchvision, and pictures."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def write_model(name: str, folder: Path, weights: Path | None) -> Path:
    """Write a model file of a network to `folder`, and return its path.

    Its weights are those of <weights>/<name>.safetensors (a model file) or of *<name>.pth (a state dict); if there are
    none, those in the package; else random weights with fitting statistics, which are as fast. What tuning left beside
    the model file, in <weights>/<name>.tuned, is copied with it.
    """
    import torch

    from resnetkit import modelfile
    from resnetkit.data.transforms.preprocess import Preprocess
    from resnetkit.models.resnet import build
    from resnetkit.models.shipped import shipped

    path = folder / f"{name}.safetensors"
    own = list(shipped(name).values())
    found = [*weights.glob(f"{name}.safetensors"), *weights.glob(f"*{name}.pth")] if weights else []
    if whole := [file for file in found + own if file.suffix == ".safetensors"]:
        shutil.copyfile(whole[0], path)
        if (tuned := whole[0].with_suffix(".tuned")).is_dir():
            shutil.copytree(tuned, path.with_suffix(".tuned"))
        return path
    torch.manual_seed(0)
    net = build(name)
    if found:
        tensors = torch.load(found[0], weights_only=True)
        net.load_state_dict(
            {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
        )
    else:
        with torch.no_grad():
            net.train()(torch.randn(8, net.spec.in_channels, 64, 64))
    size = net.spec.input_size
    preprocess = Preprocess(size=size, resize=256 if size == 224 else None)
    classes = tuple(f"class {index}" for index in range(net.spec.classes))
    modelfile.save(path, net.eval(), modelfile.Header(net.spec, preprocess, classes))
    return path


def eager_network(path: Path):
    """Return torchvision's network with the weights of a model file; ours, of torch's layers, if there is none."""
    import torchvision
    from safetensors.torch import load_file

    from resnetkit.models.resnet import build

    name = path.stem
    net = torchvision.models.get_model(name, weights=None) if name in torchvision.models.list_models() else build(name)
    net.load_state_dict(load_file(path))
    return net.eval()


def eager_transform(path: Path):
    """Return the usual torchvision transform of a PIL picture for the network of this model file."""
    from torchvision import transforms

    from resnetkit import modelfile

    preprocess = modelfile.inspect(path).preprocess
    return transforms.Compose(
        [
            transforms.Resize(preprocess.shorter_side),
            transforms.CenterCrop(preprocess.size),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )


def pictures_for(path: Path, photos: Path | None, count: int) -> list[NDArray[np.uint8]]:
    """Return decoded pictures (height, width, 3): of 500x375, or of the network's own size if it is small."""
    from decode import photographs
    from resnetkit import modelfile

    size = modelfile.inspect(path).preprocess.size
    found = photographs(photos)
    if size < 100:
        found = [picture.resize((size, size), Image.Resampling.BOX) for picture in found]
    return [np.array(found[i % len(found)]) for i in range(count)]


def tune(path: Path, data: object, *flags: object) -> None:
    """Tune a model file for this machine, unless it came with the result of an earlier tuning."""
    if not path.with_suffix(".tuned").is_dir():
        resnetkit("tune", path, data, *flags, stdout=subprocess.DEVNULL)


def resnetkit(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    """Run the command line as from a shell; raise CalledProcessError if it fails."""
    command = [sys.executable, "-m", "resnetkit", *map(str, arguments)]
    return subprocess.run(command, check=True, text=True, env=os.environ, **options)

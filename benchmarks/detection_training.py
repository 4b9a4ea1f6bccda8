"""Steps of a detector's training: ours against torchvision's references/detection, on the same trunk and pictures.

All contenders train on batches of --batch-size pictures of DATA's train part, resized to the same shorter side and
mirrored at random, with SGD, from the same ImageNet weights, with the stem and the first stage frozen, in float32:

- torchvision: `FasterRCNN` on `resnet_fpn_backbone("resnet18", trainable_layers=3)` with its default settings, as
  references/detection builds and trains it: a pyramid from stride 4 of 256 channels, 512 regions a picture; Pillow and
  a DataLoader with --workers processes;
- torchvision, small: the same loop with torchvision's parts in the sizes of our `fpn-small`: the same multiplications;
- ours: the task of `resnetkit detect train` with its defaults but for the jitter of sizes, which is off.

They take turns in one process, each with its own loader; the median over rounds counts, of the time on the clock per
step, loading included, and of the processor's time (of this process, without that of the DataLoader's processes).

    python benchmarks/detection_training.py DATA --init resnet18.safetensors [--size 320] [--rounds 5] [--steps 4]
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from machine import describe
from resnetkit.allocator import keep_memory
from resnetkit.data.detection.dataset import open_detection
from resnetkit.data.detection.samples import DetectionSamples
from resnetkit.detect.recipe import DetectionRecipe
from resnetkit.detect.run import prepare
from resnetkit.detect.spec import DETECTORS, DetectorSpec
from resnetkit.modelfile import load
from resnetkit.train.computing.optim import make_optimizer

Steps = Iterator[None]
"""Each `next` takes one step of training."""


class Pictures(torch.utils.data.Dataset):
    """Pictures and targets as references/detection has them: decoded by Pillow, mirrored at random."""

    def __init__(self, samples: DetectionSamples) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        from torchvision.transforms.functional import pil_to_tensor

        image = pil_to_tensor(Image.open(self.samples.paths[index]).convert("RGB")).float() / 255
        objects = self.samples.objects[index]
        boxes = torch.from_numpy(objects.boxes).clone()
        if torch.rand(()) < 0.5:
            image = image.flip(2)
            boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": torch.from_numpy(objects.labels) + 1}


def torchvision_steps(samples: DetectionSamples, init: str, spec: DetectorSpec | None, args: Any) -> Steps:
    """Train torchvision's Faster R-CNN; with `spec`, in the sizes of that detector of ours."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.models.resnet import resnet18
    from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

    classes = len(samples.classes) + 1
    weights = {name: x for name, x in load(init).net.state_dict().items() if not name.startswith("fc.")}
    if spec is None:
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=3)
        net = FasterRCNN(backbone, classes, min_size=args.size, max_size=DETECTORS["fpn-small"].longest)
    else:
        body = resnet18(norm_layer=FrozenBatchNorm2d)
        for name, parameter in body.named_parameters():
            parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
        maps = {f"layer{spec.first_level - 1 + place}": str(place) for place in range(6 - spec.first_level)}
        channels = [64 * 2 ** (level - 2) for level in range(spec.first_level, 6)]
        net = FasterRCNN(
            BackboneWithFPN(body, maps, channels, spec.width),
            None,
            min_size=args.size,
            max_size=spec.longest,
            rpn_anchor_generator=AnchorGenerator(spec.anchor_sizes, (spec.anchor_ratios,) * len(spec.anchor_sizes)),
            rpn_head=RPNHead(spec.width, spec.anchors_per_position),
            rpn_pre_nms_top_n_train=spec.candidates[0],
            rpn_post_nms_top_n_train=spec.proposals[0],
            rpn_batch_size_per_image=spec.rpn_sampled,
            box_roi_pool=MultiScaleRoIAlign(list(maps.values()), output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(spec.width * 49, spec.hidden),
            box_predictor=FastRCNNPredictor(spec.hidden, classes),
            box_batch_size_per_image=spec.regions_sampled,
        )
    missing = net.backbone.body.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ValueError(f"weights without {missing[:3]}")
    net.train()
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, weight_decay=1e-4)
    loader = torch.utils.data.DataLoader(
        Pictures(samples),
        args.batch_size,
        shuffle=True,
        num_workers=args.workers,
        drop_last=True,
        collate_fn=lambda batch: tuple(zip(*batch, strict=True)),
        persistent_workers=args.workers > 0,
    )
    while True:
        for images, targets in loader:
            loss = sum(net(list(images), list(targets)).values())
            loss.item()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield


def our_steps(dataset: Any, init: str, args: Any) -> Steps:
    """Train the task of `resnetkit detect train`, as its loop does."""
    recipe = DetectionRecipe(
        init=init, size=args.size, batch_size=args.batch_size, workers=args.workers, jitter=(1.0, 1.0), epochs=1
    )
    task = prepare(recipe, dataset)
    task.train_mode()
    optimizer = make_optimizer(task.net, task.recipe)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    parameters = [p for p in task.net.parameters() if p.requires_grad]
    epoch = 0
    while True:
        for batch in task.batches(epoch, 0, lambda: 0.0):
            loss = task.step(batch, pictures=len(batch)).loss
            loss.backward()
            loss.item()
            torch.nn.utils.clip_grad_norm_(parameters, task.recipe.gradient_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield
        epoch += 1


def timed(steps: Steps, count: int) -> tuple[float, float]:
    """Return the seconds per step on the clock, and of the processor in this process."""
    clock, processor = time.perf_counter(), time.process_time()
    for _ in range(count):
        next(steps)
    return (time.perf_counter() - clock) / count, (time.process_time() - processor) / count


def main() -> None:
    """Print the medians and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--init", required=True, help="model file of a ResNet-18 for ImageNet")
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0, help="threads that compute; 0 is one per core")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="steps of each contender in a round")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    dataset = open_detection(str(args.data))
    small = DETECTORS["fpn-small"]
    contenders: dict[str, Callable[[], Steps]] = {
        "torchvision": lambda: torchvision_steps(dataset.train, args.init, None, args),
        "torchvision, small": lambda: torchvision_steps(dataset.train, args.init, small, args),
        "ours": lambda: our_steps(dataset, args.init, args),
    }
    print(describe())
    print(f"batches of {args.batch_size}, shorter side {args.size} px, {args.workers} workers")
    running = {name: make() for name, make in contenders.items()}
    keep_memory()  # as our command does; it serves all contenders alike
    for name, steps in running.items():
        timed(steps, 2)
        print(f"{name}: ready", flush=True)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in running}
    for _ in range(args.rounds):
        for name, steps in running.items():
            taken[name].append(timed(steps, args.steps))
    print(f"{'':20} {'s a step':>10} {'CPU s':>8} {'images/s':>9}  times ours: clock, CPU (range over rounds)")
    for name, rounds in taken.items():
        clock, processor = (median(column) for column in zip(*rounds, strict=True))
        ratios = [
            [theirs[kind] / ours[kind] for theirs, ours in zip(rounds, taken["ours"], strict=True)] for kind in (0, 1)
        ]
        spread = ", ".join(f"{median(one):.2f} ({min(one):.2f} to {max(one):.2f})" for one in ratios)
        print(f"{name:20} {clock:10.2f} {processor:8.2f} {args.batch_size / clock:9.2f}  {spread}")


if __name__ == "__main__":
    main()

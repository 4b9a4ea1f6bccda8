"""Detection from decoded pictures to boxes: ours against torchvision's eager Faster R-CNN on the same trunk.

All contenders have the same task: a decoded picture, uint8, is resized to the same shorter side, and its boxes are
returned in its own pixels. Their networks are not the same, so two peers are measured:

- torchvision: `FasterRCNN` with `resnet_fpn_backbone("resnet18")`, as references/detection builds it: a pyramid from
  stride 4 of 256 channels, 1,000 proposals, in float32, eager, in inference mode;
- torchvision, small: torchvision's parts with the sizes of our `fpn-small` (a pyramid from stride 8 of 128 channels,
  300 proposals, the same anchors) and our weights: the same network, and the same boxes but for the resizing;
- torchvision, small, one ONNX graph: the same, from torch.onnx.export, with suppression and RoI align in the graph, in
  ONNX Runtime; it takes any size of picture;
- ours, torch: our detector, eager;
- ours: DetectorPredictor by each backend and precision (int8 needs --model that `resnetkit tune MODEL DATA` has tuned).

Contenders take turns in one process, with `--threads` each; the median over pictures and rounds counts, of the time on
the clock and of the processor's time, which other processes on the machine disturb less. The weights of torchvision's
own network are random.

    python benchmarks/detection_inference.py --model runs/cells --pictures cells/ [--threads 1] [--rounds 5]
"""

import argparse
import io
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from machine import describe
from resnetkit.data.folders.listing import find_below
from resnetkit.detect.evaluate import decoded
from resnetkit.detect.files import DetectorModel, load_detector
from resnetkit.detect.predict import DetectorPredictor
from resnetkit.detect.spec import DetectorSpec
from resnetkit.detect.torchvision import to_torchvision
from resnetkit.errors import ResnetkitError
from resnetkit.infer.choice import GRAPHS, available

Call = Callable[[NDArray[np.uint8]], int]
"""Takes a picture, uint8 (h, w, 3); returns the number of its boxes."""


def torchvision_detector(ours: DetectorModel, spec: DetectorSpec | None) -> nn.Module:
    """Return torchvision's Faster R-CNN on a ResNet-18; with the `spec` of ours, with its sizes and its weights."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.rpn import RPNHead
    from torchvision.models.resnet import resnet18
    from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

    torch.manual_seed(0)
    classes, size = len(ours.header.classes), ours.header.preprocess.size
    if spec is None:
        backbone = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        net = FasterRCNN(backbone, classes + 1, min_size=size, max_size=800)
    else:
        body = resnet18(norm_layer=FrozenBatchNorm2d)
        kept = {f"layer{stage - 1}": str(stage - spec.first_level) for stage in range(spec.first_level, 6)}
        channels = [64 * 2 ** (stage - 2) for stage in range(spec.first_level, 6)]
        backbone = BackboneWithFPN(body, kept, channels, spec.width)
        ratios = (spec.anchor_ratios,) * len(spec.anchor_sizes)
        net = FasterRCNN(
            backbone,
            min_size=size,
            max_size=spec.longest,
            rpn_anchor_generator=AnchorGenerator(spec.anchor_sizes, ratios),
            rpn_head=RPNHead(spec.width, spec.anchors_per_position),
            rpn_pre_nms_top_n_test=spec.candidates[1],
            rpn_post_nms_top_n_test=spec.proposals[1],
            box_roi_pool=MultiScaleRoIAlign(list(kept.values()), output_size=7, sampling_ratio=2),
            box_head=TwoMLPHead(spec.width * 49, spec.hidden),
            box_predictor=FastRCNNPredictor(spec.hidden, classes + 1),
            box_score_thresh=spec.score_threshold,
            box_nms_thresh=spec.nms_iou,
            box_detections_per_img=spec.most_detections,
        )
        net.load_state_dict(to_torchvision(ours.net))
    return net.eval()


def eager(net: nn.Module) -> Call:
    """Return the call of torchvision's detector."""
    net = net.to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def call(pixels: NDArray[np.uint8]) -> int:
        (found,) = net([_scaled(pixels)])
        return len(found["boxes"])

    return call


def one_graph(net: nn.Module, example: NDArray[np.uint8], threads: int) -> Call:
    """Return the call of one graph of torchvision's detector, exported with a picture, in ONNX Runtime."""
    import onnxruntime

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's, which torchvision's code is written for
        torch.onnx.export(
            net,
            ([_scaled(example)],),
            file,
            input_names=["image"],
            output_names=["boxes", "labels", "scores"],
            dynamic_axes={"image": {1: "height", 2: "width"}},
            opset_version=17,
            dynamo=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda pixels: len(session.run(["boxes"], {"image": _scaled(pixels).numpy()})[0])


def _scaled(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """Return a picture as torchvision wants it: float32 (3, h, w), 0 to 1."""
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def contenders(model: Path, threads: int, example: NDArray[np.uint8]) -> dict[str, tuple[Call, int]]:
    """Return name -> call and the threads of torch: a graph is computed beside one."""
    loaded = load_detector(model)
    small = torchvision_detector(loaded, loaded.net.spec)
    found: dict[str, tuple[Call, int]] = {
        "torchvision": (eager(torchvision_detector(loaded, None)), threads),
        "torchvision, small": (eager(small), threads),
        "torchvision, small, one ONNX": (one_graph(small, example, threads), 1),
        "ours, torch": (_ours(DetectorPredictor(loaded)), threads),
    }
    for backend in (name for name in available() if name in GRAPHS):
        for precision in ("float32", "int8") if backend == "openvino" else ("float32",):
            try:
                predictor = DetectorPredictor(model, backend=backend, precision=precision, threads=threads)
            except ResnetkitError as error:
                print(f"{backend} {precision} is left out: {error}")
                continue
            found[f"ours, {backend} {precision}"] = (_ours(predictor), 1)
    return found


def _ours(predictor: DetectorPredictor) -> Call:
    return lambda pixels: len(predictor.compute(pixels))


def run(calls: dict[str, tuple[Call, int]], pictures: list[NDArray[np.uint8]], rounds: int) -> dict[str, Any]:
    """Return name -> medians over pictures and rounds, in milliseconds, and the mean number of boxes."""
    clock: dict[str, list[float]] = {name: [] for name in calls}
    processor: dict[str, list[float]] = {name: [] for name in calls}
    boxes: dict[str, list[int]] = {name: [] for name in calls}
    for number in range(rounds + 1):  # the first round warms up
        for pixels in pictures:
            for name, (call, threads) in calls.items():
                torch.set_num_threads(threads)
                wall, cpu = time.perf_counter(), time.process_time()
                count = call(pixels)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                if number:
                    clock[name].append(1000 * wall)
                    processor[name].append(1000 * cpu)
                    boxes[name].append(count)
    return {
        name: {
            "milliseconds": median(clock[name]),
            "processor_milliseconds": median(processor[name]),
            "boxes": sum(boxes[name]) / len(boxes[name]),
        }
        for name in calls
    }


def main() -> None:
    """Measure, and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a detector with fpn-small on a ResNet-18")
    parser.add_argument("--pictures", type=Path, required=True, help="folder of pictures")
    parser.add_argument("--most", type=int, default=6, help="pictures that are measured")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    paths = [found.path for found in find_below(given.pictures) if found.kind == "picture"][: given.most]
    if not paths:
        parser.error(f"{given.pictures} has no pictures")
    torch.set_num_threads(given.threads)
    machine = describe()
    pictures = [decoded(path) for path in paths]
    found = run(contenders(given.model, given.threads, pictures[0]), pictures, given.rounds)
    if given.json:
        print(json.dumps({"machine": machine, "contenders": found}, indent=2))
        return
    print(machine)
    height, width, _ = pictures[0].shape
    print(f"{len(pictures)} pictures, the first {width} x {height}; {given.rounds} rounds; medians")
    print(f"{'':28} {'ms':>8} {'cpu ms':>8} {'boxes':>6} {'torchvision /':>14} {'small /':>9}")
    whole, small = found["torchvision"], found["torchvision, small"]
    for name, row in found.items():
        ratios = [one["milliseconds"] / row["milliseconds"] for one in (whole, small)]
        print(
            f"{name:28} {row['milliseconds']:8.1f} {row['processor_milliseconds']:8.1f} {row['boxes']:6.1f} "
            f"{ratios[0]:13.2f}x {ratios[1]:8.2f}x"
        )


if __name__ == "__main__":
    main()

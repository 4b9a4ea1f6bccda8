"""Detectors: torchvision's, the same boxes from the same weights; the folded trunk; model files."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from resnetkit import modelfile
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.files import header_of, load_detector, save_detector, with_thresholds
from resnetkit.detect.model import Detector
from resnetkit.detect.spec import DETECTORS, DetectorSpec, find_detector
from resnetkit.detect.torchvision import from_torchvision, to_torchvision
from resnetkit.detect.trunk import ScaledConv2d, make_trunk
from resnetkit.errors import ModelFileError, UsageError
from resnetkit.models.resnet import build
from resnetkit.models.spec import parse_spec

CLASSES = ("cat", "dog", "bird", "fish")
TINY = replace(DETECTORS["fpn-small"], width=16, hidden=32, regions_sampled=32, proposals=(50, 30))


def calibrated(net: nn.Module, images: Tensor) -> None:
    """Give batch normalisations the statistics of some pictures, so that maps have the size of a trained network's."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
        norm.reset_running_stats()
    net.train()
    with torch.no_grad():
        net(images)
    net.eval()


def tiny(head: str = "fpn-small", *, size: int = 64, classes: int = 4) -> Detector:
    torch.manual_seed(0)
    spec = TINY if head == "fpn-small" else replace(DETECTORS[head], proposals=(50, 30), regions_sampled=32)
    return Detector(parse_spec("resnet18,width=8,norm=frozen"), spec, Preprocess(size), classes=classes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"])
def test_torchvisions_weights_give_torchvisions_boxes(name):
    from torchvision.models import detection

    torch.manual_seed(0)
    make = getattr(detection, name)
    few = {"min_size": 96, "max_size": 160, "rpn_post_nms_top_n_test": 40}
    theirs = make(weights=None, weights_backbone=None, num_classes=5, **few).eval()
    noise = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 90, 120, generator=noise), torch.rand(3, 110, 70, generator=noise)]
    calibrated(theirs.backbone, torch.randn(2, 3, 96, 128, generator=noise))
    calibrated(theirs.roi_heads.box_head, torch.randn(64, 256, 7, 7, generator=noise))
    theirs.roi_heads.box_predictor.cls_score.weight.data *= 3  # so that the scores differ clearly
    ours = from_torchvision(theirs.state_dict(), CLASSES, size=96)
    net = Detector(
        ours.net.trunk,
        replace(ours.net.spec, longest=160, proposals=(40, 40)),
        ours.net.preprocess,
        classes=len(CLASSES),
    ).eval()
    net.load_state_dict(ours.net.state_dict())
    with torch.no_grad():
        maps, of_theirs = net.backbone(images[0][None]), theirs.backbone(images[0][None])
        # In float64, since random weights enlarge what float32 rounds.
        images = [image.double() for image in images]
        expected, found = theirs.double()(images), net.double()(images)
    for name, one in maps.items():
        torch.testing.assert_close(one, of_theirs[name], atol=1e-4 * float(one.abs().max()), rtol=0)
    for one, other in zip(expected, found, strict=True):
        assert len(one["boxes"]) == len(other["boxes"]) > 20
        torch.testing.assert_close(one["boxes"], other["boxes"], atol=1e-4, rtol=0)
        torch.testing.assert_close(one["scores"], other["scores"], atol=1e-6, rtol=0)
        assert torch.equal(one["labels"] - 1, other["labels"])
    net.float()
    back = make(weights=None, weights_backbone=None, num_classes=5)
    back.load_state_dict(to_torchvision(net, counters=True))
    theirs_again = back.state_dict()
    own = without_counters(theirs.float().state_dict())
    assert all(torch.equal(tensor, theirs_again[key]) for key, tensor in own.items())
    frozen = {key for key in to_torchvision(net) if key.endswith("num_batches_tracked")}
    assert not frozen


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def test_other_weights_are_refused():
    net = tiny()
    with pytest.raises(ModelFileError, match="does not contain a detector of torchvision's on a residual network"):
        from_torchvision(net.state_dict(), CLASSES)


@pytest.mark.parametrize(
    "text", ["resnet18", "resnet50", "resnet50,stem=deep,pooled_shortcut=true", "preact_resnet18", "resnet20"]
)
def test_a_folded_trunk_computes_the_same(text):
    torch.manual_seed(0)
    spec = parse_spec(text, width=8)
    plain = build(spec).double()
    images = torch.randn(2, 3, 64, 48, dtype=torch.float64)
    calibrated(plain, images)
    trunk = make_trunk(replace(spec, norm="frozen"), eps=1e-5).double()
    trunk.load_state_dict({name: x for name, x in plain.state_dict().items() if not name.startswith("fc.")})
    for one, other in zip(plain.features(images), trunk.features(images), strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=1e-8)
    convolutions = [module for module in trunk.modules() if isinstance(module, nn.Conv2d)]
    folded = [module for module in convolutions if isinstance(module, ScaledConv2d)]
    assert len(folded) >= len(convolutions) // 3
    trunk.features(images)[-1].sum().backward()
    plain.features(images)[-1].sum().backward()
    expected = dict(plain.named_parameters())
    for name, weight in trunk.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name].grad, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("head", ["fpn-small", "fpn", "fpn-v2", "c4"])
def test_every_row_trains_and_finds(head):
    net = tiny(head)
    images = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    boxes = [torch.tensor([[5.0, 5, 30, 40], [20, 20, 60, 60]]), torch.zeros(0, 4)]
    labels = [torch.tensor([0, 3]), torch.zeros(0, dtype=torch.int64)]
    losses = net.train().losses(images, boxes, labels)
    assert sorted(losses) == ["loss_box_reg", "loss_classifier", "loss_objectness", "loss_rpn_box_reg"]
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    trained = [name for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert {name.split(".")[0] for name in trained} == {"backbone", "rpn", "roi_heads"}
    assert any("layer4" in name for name in trained)
    with torch.no_grad():
        found = net.eval()([(255 * image).to(torch.uint8) for image in images])
    for one, image in zip(found, images, strict=True):
        assert one["labels"].dtype == torch.int64
        assert all(0 <= label < 4 for label in one["labels"].tolist())
        assert (one["boxes"][:, 2] <= image.shape[2] + 1e-3).all()
        assert (one["boxes"][:, 3] <= image.shape[1] + 1e-3).all()
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)


def test_a_picture_without_boxes_is_background():
    """All its anchors and regions are negative examples, and nothing pulls at boxes."""
    net = tiny().train()
    nothing = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
    losses = net.losses([torch.rand(3, 64, 80)], *nothing)
    assert losses["loss_rpn_box_reg"] == losses["loss_box_reg"] == 0
    assert losses["loss_objectness"] > 0
    assert losses["loss_classifier"] > 0


def test_boxes_are_in_the_pixels_of_the_picture():
    net = tiny(size=64).eval()
    small = torch.rand(3, 64, 96)
    large = torch.nn.functional.interpolate(small[None], scale_factor=3, mode="nearest")[0]
    with torch.no_grad():
        (one,), (other,) = net([small]), net([large])
    assert len(one["boxes"]) > 5
    assert other["boxes"].max() > 100
    assert one["boxes"].max() <= 96


def test_a_model_file_keeps_the_detector(tmp_path: Path):
    net = tiny().eval()
    header = with_thresholds(header_of(net, CLASSES, data={"name": "cells"}), {"cat": 0.4})
    save_detector(tmp_path / "d.safetensors", net, header)
    model = load_detector(tmp_path / "d.safetensors")
    assert model.header.classes == CLASSES
    assert model.thresholds == {"cat": 0.4}
    assert model.net.spec == TINY
    image = torch.rand(3, 64, 80)
    with torch.no_grad():
        (one,), (other,) = net.to(memory_format=torch.channels_last)([image]), model.net([image])
    assert torch.equal(one["boxes"], other["boxes"])
    with pytest.raises(ModelFileError, match="contains a detector, which the verbs of resnetkit detect use"):
        modelfile.load(tmp_path / "d.safetensors")
    other_net = tiny(size=96)
    with pytest.raises(ModelFileError, match="the detector is not that of the header"):
        save_detector(tmp_path / "e.safetensors", other_net, header)


def test_a_classifier_is_no_detector(tmp_path: Path):
    net = build("resnet18,width=8,classes=2")
    modelfile.save(tmp_path / "c.safetensors", net, modelfile.Header(net.spec, Preprocess(64), ("a", "b")))
    with pytest.raises(ModelFileError, match="contains a classifier; give a detector"):
        load_detector(tmp_path / "c.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_level": 6}, "`first_level` is 6"),
        ({"anchor_sizes": ((8,), (16, 20))}, "same number of sizes"),
        ({"anchor_ratios": ()}, "anchors need a size over 0"),
        ({"nms_iou": 2.0}, "`nms_iou` is 2.0; it must be from 0 to 1"),
        ({"width": 0}, "`width` is 0"),
        ({"rpn_iou": (0.3, 0.5)}, r"`rpn_iou` is \[0.3, 0.5\]"),
        ({"head": "yolo"}, "choose fpn or c4"),
    ],
)
def test_impossible_detectors_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        replace(TINY, **changes)


def test_a_spec_is_plain_values_and_back():
    for name, spec in DETECTORS.items():
        assert DetectorSpec.from_dict(spec.to_dict()) == spec, name
    with pytest.raises(UsageError, match="detectors have no field 'depth'"):
        DetectorSpec.from_dict({"depth": 3})
    with pytest.raises(UsageError, match="`detector` is 'fpm'; did you mean fpn"):
        find_detector("fpm")


def test_anchors_must_fit_the_maps():
    with pytest.raises(UsageError, match="`anchor_sizes` are for 4 maps; this detector has 5"):
        Detector(parse_spec("resnet18,norm=frozen"), replace(TINY, first_level=2), Preprocess(64), classes=1)

"""The appendix's ladder: each step changes what it should, and nothing else."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.cli import main
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.detect.evaluate import find
from resnetkit.detect.files import DetectorModel, header_of, save_detector
from resnetkit.detect.ladder import Ladder, LadderFinder, adjacent_scales, voted
from resnetkit.detect.model import Detector
from resnetkit.detect.spec import DETECTORS
from resnetkit.errors import UsageError
from resnetkit.models.spec import parse_spec

CLASSES = ("a", "b", "c")
TINY = replace(DETECTORS["fpn-small"], width=16, hidden=32, regions_sampled=32, proposals=(50, 30), score_threshold=0.0)


def model(seed: int = 0, *, size: int = 64, classes: tuple[str, ...] = CLASSES, context: bool = False) -> DetectorModel:
    """A detector with random weights, whose boxes differ from its proposals."""
    torch.manual_seed(seed)
    spec = replace(TINY, context=context)
    net = Detector(parse_spec("resnet18,width=8,norm=frozen"), spec, Preprocess(size), classes=len(classes)).eval()
    predictor = net.roi_heads.box_predictor
    with torch.no_grad():
        for layer in (predictor.cls_score, predictor.bbox_pred):
            layer.weight.normal_(std=0.3)
    return DetectorModel(net, header_of(net, classes))


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def test_without_a_step_it_is_the_plain_prediction(picture):
    plain, ladder = find(model().net, picture), LadderFinder([model()], Ladder())(picture)
    assert len(plain) > 5
    np.testing.assert_allclose(ladder.boxes, plain.boxes, atol=1e-3)
    np.testing.assert_allclose(ladder.scores, plain.scores, atol=1e-5)
    assert (ladder.labels == plain.labels).all()
    assert Ladder().plain
    assert not Ladder(refine=True).plain


def test_refinement_judges_the_regressed_boxes(picture, monkeypatch):
    """The second pass gets, for each region, the box of its likeliest class; both passes are suppressed together."""
    finder, seen = LadderFinder([model()], Ladder(refine=True)), []
    judge = finder._judge

    def watching(views, regions, size):
        seen.append((regions, judge(views, regions, size)))
        return seen[-1][1]

    monkeypatch.setattr(finder, "_judge", watching)
    found = finder(picture)
    (first, judged), (second, _) = seen
    likeliest = judged.probabilities[:, 1:].argmax(1) + 1
    moved = judged.boxes[torch.arange(len(first)), likeliest].clamp(min=0)
    limits = torch.tensor([120.0, 90, 120, 90])
    expected = torch.minimum(moved, limits)
    assert len(second) <= len(first)
    assert all(((expected - box).abs().amax(1) < 1e-3).any() for box in second)
    plain = LadderFinder([model()], Ladder())(picture)
    assert len(found) != len(plain) or not np.allclose(found.boxes, plain.boxes)


def test_boxes_vote_by_their_scores():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 12], [0, 0, 10, 12], [50, 50, 60, 60], [0, 0, 10, 21]])
    scores, labels = torch.tensor([0.6, 0.3, 0.9, 0.8, 0.5]), torch.tensor([1, 1, 2, 1, 1])
    places = voted(boxes, scores, labels, torch.tensor([0, 3]))
    # The second box votes; the third is of another class, the last overlaps by less than a half.
    torch.testing.assert_close(places[0], torch.tensor([0, 0, 10, (0.6 * 10 + 0.3 * 12) / 0.9]))
    assert torch.equal(places[1], boxes[3])


def test_a_region_is_pooled_from_the_scales_that_bring_it_near_224_pixels():
    regions = torch.tensor([[0.0, 0, 1000, 1000], [0, 0, 300, 300], [0, 0, 20, 20]])
    assert adjacent_scales(regions, (1000, 1000), (200, 400, 800, 1600)).tolist() == [0, 1, 2]
    assert adjacent_scales(regions, (1000, 1000), (200, 400)).tolist() == [0, 0, 0]


def test_scales_are_merged_by_maxout(picture):
    """Two scales of one side give the features of one; other ones the larger of two."""
    one = model()
    finder = LadderFinder([one], Ladder(scales=(64, 96)))
    image = torch.from_numpy(picture).permute(2, 0, 1)
    with torch.no_grad():
        views = finder._views(one.net, image)
        assert [view.shorter_side for view in views] == [64, 96]
        regions = torch.tensor([[0.0, 0, 60, 60], [30, 10, 100, 80]])
        heads = one.net.roi_heads
        features = []
        for view, factor in zip(views, (64 / 90, 96 / 90), strict=True):
            (size,) = view.batch.image_sizes
            factors = torch.tensor([size[1] / 120, size[0] / 90] * 2)
            assert size[0] == pytest.approx(90 * factor)
            features.append(heads.box_head(heads.box_roi_pool(view.maps, [regions * factors], [size])))
        logits, _ = heads.box_predictor(torch.maximum(*features))
        judged = finder._judge([views], regions, (90, 120))
    torch.testing.assert_close(judged.probabilities, logits.softmax(1), atol=1e-4, rtol=1e-4)
    plain, found = LadderFinder([one], Ladder())(picture), finder(picture)
    assert len(plain) != len(found) or not np.allclose(plain.scores, found.scores)


def test_an_ensemble_shares_proposals_and_averages(picture, monkeypatch):
    first, second = model(0), model(1, size=96)
    finder = LadderFinder([first, second], Ladder())
    image = torch.from_numpy(picture).permute(2, 0, 1)
    regions = torch.tensor([[0.0, 0, 60, 60], [30, 10, 100, 80]])
    with torch.no_grad():
        views = [finder._views(net, image) for net in finder.nets]
        alone = [finder._judged(net, seen, regions, (90, 120)) for net, seen in zip(finder.nets, views, strict=True)]
        together = finder._judge(views, regions, (90, 120))
    torch.testing.assert_close(together.boxes, (alone[0].boxes + alone[1].boxes) / 2)
    torch.testing.assert_close(together.probabilities.sum(1), torch.ones(2))
    counted: list[int] = []
    judge = finder._judge
    monkeypatch.setattr(finder, "_judge", lambda v, r, s: counted.append(len(r)) or judge(v, r, s))
    finder(picture)
    singles = []
    for one in (first, second):
        single = LadderFinder([one], Ladder())
        monkeypatch.setattr(single, "_judge", lambda v, r, s, j=single._judge: singles.append(len(r)) or j(v, r, s))
        single(picture)
    assert counted == [sum(singles)]
    same = LadderFinder([first, model(0)], Ladder())(picture)
    np.testing.assert_allclose(same.scores[:5], LadderFinder([first], Ladder())(picture).scores[:5], atol=1e-4)


def test_context_joins_the_whole_picture():
    """A change far away from a region moves its features in the second half alone."""
    net = model(context=True).net
    assert net.roi_heads.box_predictor.cls_score.in_features == 2 * TINY.hidden
    maps = {str(place): torch.randn(2, 16, 32 >> place, 32 >> place) for place in range(3)}
    boxes, sizes = (
        [torch.tensor([[0.0, 0, 40, 40], [8, 8, 60, 60]]), torch.tensor([[0.0, 0, 50, 50]])],
        [(256, 256)] * 2,
    )
    heads = net.roi_heads
    with torch.no_grad():
        before = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
        for one in maps.values():
            one[1, :, one.shape[2] // 2 :] += 3
        after = heads.box_head(heads.box_roi_pool(maps, boxes, sizes))
    assert before.shape == (3, 2 * TINY.hidden)
    assert torch.equal(before[:2], after[:2])  # of the other picture
    assert torch.equal(before[2, : TINY.hidden], after[2, : TINY.hidden])
    assert not torch.allclose(before[2, TINY.hidden :], after[2, TINY.hidden :])
    losses = net.train().losses([torch.rand(3, 64, 80)], [torch.tensor([[5.0, 5, 30, 40]])], [torch.tensor([1])])
    torch.stack(list(losses.values())).sum().backward()
    assert heads.box_predictor.cls_score.weight.grad[:, TINY.hidden :].abs().sum() > 0


def test_impossible_ladders_are_refused():
    with pytest.raises(UsageError, match="give two different ones or more"):
        Ladder(scales=(320, 320))
    with pytest.raises(UsageError, match="the same classes in the same order"):
        LadderFinder([model(), model(classes=("b", "a", "c"))], Ladder())
    assert Ladder(scales=(400, 320)).scales == (320, 400)


def test_the_verbs_have_the_switches(tmp_path, picture, capsys):
    """Each switch changes the boxes; the thresholds are those of the first detector."""
    names = [str(tmp_path / f"{seed}.safetensors") for seed in range(2)]
    for seed, name in enumerate(names):
        one = model(seed)
        save_detector(name, one.net, one.header)
    file = tmp_path / "a.png"
    Image.fromarray(picture).save(file)
    seen = []
    for flags in ([], ["--refine"], ["--scales", "64,96"], ["--with", names[1]]):
        common = ["--threshold", "0", "--json", "--threads", "1", "--backend", "torch"]
        assert main(["detect", "predict", names[0], str(file), *common, *flags]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        seen.append(result["detections"])
    assert all(len(found) > 5 for found in seen)
    assert all(found != seen[0] for found in seen[1:])
    assert main(["detect", "predict", names[0], str(file), "--refine", "--backend", "openvino"]) == 2
    assert "--backend has no effect with --refine" in capsys.readouterr().err

"""Counts of an evaluation, against torch's own loss and counts by hand."""

import pytest
import torch
from torch.nn import functional as F

from resnetkit.evaluation.metrics import Evaluation, mean_log_probabilities

NAMES = tuple("abcdefgh")


def test_counts_do_not_depend_on_the_batches():
    logits = torch.randn(203, 8, generator=torch.Generator().manual_seed(1))
    labels = torch.randint(0, 7, (203,), generator=torch.Generator().manual_seed(2))  # h never occurs
    results = []
    for size in (1, 7, 203):
        result = Evaluation(NAMES)
        for some, truth in zip(logits.split(size), labels.split(size), strict=True):
            result.add(some.log_softmax(1), truth)
        results.append(result.to_dict())
    assert results[0] == results[1] == results[2]
    assert results[0]["images"] == 203
    assert results[0]["loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
    wrong = (logits.argmax(1) != labels).float().mean().item()
    assert results[0]["top1_error_percent"] == pytest.approx(100 * wrong, abs=1e-3)
    among = (logits.argsort(1, descending=True)[:, :5] == labels[:, None]).any(1).float().mean().item()
    assert results[0]["top5_error_percent"] == pytest.approx(100 * (1 - among), abs=1e-3)
    assert set(results[0]["per_class"]) == set("abcdefg")
    assert sum(row["images"] for row in results[0]["per_class"].values()) == 203


def test_confusion_has_labels_in_rows():
    result = Evaluation(("a", "b", "c"))
    result.add(torch.tensor([[0.0, 5.0, 0.0], [9.0, 0.0, 0.0]]).log_softmax(1), torch.tensor([2, 0]))
    assert result.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert result.top5_error_percent == 0, "three classes: all are among the five most probable"


def test_views_are_averaged_as_probabilities():
    logits = torch.tensor([[[0.0, 9.0]], [[2.0, 0.0]]])
    mean = logits.softmax(-1).mean(0)
    assert torch.allclose(mean_log_probabilities(logits).exp(), mean, atol=1e-6)


def counted(*labels: int, classes: tuple[str, ...] = ("ant", "bee", "fly", "gnat")) -> Evaluation:
    """Pictures with these labels, all predicted right."""
    truth = torch.tensor(labels)
    result = Evaluation(classes)
    result.add(F.one_hot(truth, len(classes)).float().mul(9).log_softmax(1), truth)
    return result


def test_what_makes_an_error_worth_little_is_noted():
    assert counted(0, 0, 1, 1, 2, 2, 3, 3).notes == ()
    assert counted(1, 1, 1).notes == ("all pictures are of one class, bee: an error over one class is no result",)
    assert counted(0, 0, 1, 1, 3, 3).notes == (
        "no picture of 1 of the 4 classes (fly): how well the model knows them is not measured",
    )
    assert counted(0, 0, 1, 2, 2, 3).notes == (
        "one picture only of bee, gnat: the error of such a class is 0 or 100 % by chance",
    )
    assert counted(0, 0, 7, 7, classes=NAMES).notes == ("pictures of 2 of the model's 8 classes only",)
    assert counted(3).to_dict()["notes"][0].startswith("all pictures are of one class, gnat")
    assert Evaluation(NAMES).notes == ()


def test_top5_is_left_out_where_it_is_always_right():
    assert not counted(0).has_top5
    assert Evaluation(NAMES).has_top5
    assert counted(0, 1).to_dict()["top5_error_percent"] == 0

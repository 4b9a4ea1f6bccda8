"""Counts of an evaluation, compared with torch's loss and simple counting; merged, saved and loaded."""

import random
from dataclasses import fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from resnetkit.errors import UsageError
from resnetkit.evaluation.metrics import Evaluation, mean_log_probabilities
from resnetkit.evaluation.records import Records
from resnetkit.evaluation.sums import ExactSum

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


def test_confusions_of_many_classes_are_stored_as_the_cells_that_occur():
    names = tuple(map(str, range(1200)))
    result = Evaluation(names)
    labels = torch.tensor([0, 3, 3, 1199])
    result.add(F.one_hot(torch.tensor([0, 5, 3, 7]), 1200).float().log_softmax(1), labels)
    state = result.to_state()
    assert state["confusion"]["places"].tolist() == [0, 3 * 1200 + 3, 3 * 1200 + 5, 1199 * 1200 + 7]
    again = Evaluation.from_state(state)
    assert np.array_equal(again.confusion, result.confusion)
    assert again.to_dict() == result.to_dict()


def test_views_are_averaged_as_probabilities():
    logits = torch.tensor([[[0.0, 9.0]], [[2.0, 0.0]]])
    mean = logits.softmax(-1).mean(0)
    assert torch.allclose(mean_log_probabilities(logits).exp(), mean, atol=1e-6)


def counted(*labels: int, classes: tuple[str, ...] = ("ant", "bee", "fly", "gnat")) -> Evaluation:
    """Return the evaluation of pictures with these labels, all predicted correctly."""
    truth = torch.tensor(labels)
    result = Evaluation(classes)
    result.add(F.one_hot(truth, len(classes)).float().mul(9).log_softmax(1), truth)
    return result


def test_what_makes_an_error_worth_little_is_noted():
    assert counted(0, 0, 1, 1, 2, 2, 3, 3).notes == ()
    assert counted(1, 1, 1).notes == ("all pictures are of one class, bee: an error over one class has little meaning",)
    assert counted(0, 0, 1, 1, 3, 3).notes == ("no picture of 1 of the 4 classes (fly): their errors are not measured",)
    assert counted(0, 0, 1, 2, 2, 3).notes == (
        "only one picture of bee, gnat: the error of such a class can only be 0 or 100 %",
    )
    assert counted(0, 0, 7, 7, classes=NAMES).notes == ("there are pictures of only 2 of the model's 8 classes",)
    assert counted(3).to_dict()["notes"][0].startswith("all pictures are of one class, gnat")
    assert Evaluation(NAMES).notes == ()


def test_top5_is_left_out_where_it_is_always_right():
    assert not counted(0).has_top5
    assert Evaluation(NAMES).has_top5
    assert counted(0, 1).to_dict()["top5_error_percent"] == 0


def test_a_table_is_in_the_order_that_was_asked_for():
    result = Evaluation(("ant", "bee", "fly"))
    result.add(torch.eye(3)[[0, 1, 0, 0]].mul(9).log_softmax(1), torch.tensor([0, 1, 1, 2]))
    rows = [("fly", "1", "100.00 %"), ("bee", "2", "50.00 %"), ("ant", "1", "0.00 %")]
    assert result.table() == (("class", "pictures", "top-1 error"), rows)
    assert result.table(worst_first=False)[1] == rows[::-1]


# Merging. The losses go from 1e-12 to 100 nats, so that sums of floats are rounded.
COUNT = 40
GENERATOR = torch.Generator().manual_seed(3)
LOG_PROBABILITIES = -torch.rand(COUNT, 8, generator=GENERATOR) * torch.logspace(-12, 2, COUNT)[:, None]
LABELS = torch.randint(0, 8, (COUNT,), generator=GENERATOR)
BROKEN = {i: Path(f"{i % 7}/{i}.png") for i in range(0, COUNT, 9)}  # pictures that can't be read


def of_pictures(indices: list[int], **about: Any) -> Evaluation:
    """The evaluation of some of the pictures, one by one, with records."""
    result = Evaluation(NAMES, **about)
    result.unreadable = {BROKEN[i]: f"reason {i}" for i in indices if i in BROKEN}
    kept = []
    for i in [i for i in indices if i not in BROKEN]:
        log_probabilities = LOG_PROBABILITIES[i : i + 1]
        result.add(log_probabilities, LABELS[i : i + 1])
        kept.append(Records.of(log_probabilities, LABELS[i : i + 1], torch.tensor([i]), top=3))
    if kept:
        result.records = Records(*(np.concatenate([getattr(one, f.name) for one in kept]) for f in fields(Records)))
    return result


def plain(result: Evaluation) -> dict[str, Any]:
    """Return everything in an evaluation, in a form that can be compared."""
    records = result.records and {name: tensor.tolist() for name, tensor in result.records.to_state().items()}
    values = vars(result) | {"confusion": result.confusion.tolist(), "top5_right": result.top5_right.tolist()}
    return values | {"records": records, "loss": result.loss}


WHOLE = of_pictures(list(range(COUNT)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=COUNT, max_size=COUNT), st.randoms(use_true_random=False))
def test_parts_merge_to_the_whole(part_of: list[int], rng: random.Random) -> None:
    """Any division, any order of the pictures in a part, any order of the parts, and merged in any two steps."""
    order = rng.sample(range(COUNT), COUNT)
    parts = [of_pictures([i for i in order if part_of[i] == part]) for part in range(6)]
    rng.shuffle(parts)
    merged = Evaluation.merge(parts)
    assert plain(merged) == plain(WHOLE)
    assert list(merged.unreadable) == sorted(BROKEN.values())
    in_steps = Evaluation.merge([Evaluation.merge(parts[:2]), Evaluation.merge(parts[2:])])
    assert plain(in_steps) == plain(WHOLE)


def test_the_loss_is_the_exact_mean_rounded_once():
    losses = F.nll_loss(LOG_PROBABILITIES, LABELS, reduction="none").tolist()
    readable = [Fraction(loss) for i, loss in enumerate(losses) if i not in BROKEN]
    assert WHOLE.loss == float(sum(readable) / len(readable))
    as_floats = np.array(readable, float)
    assert np.cumsum(as_floats)[-1] != np.cumsum(as_floats[::-1])[-1], "here, a sum of floats depends on the order"


def test_merging_leaves_the_parts_as_they_are():
    parts = [of_pictures([1, 2]), of_pictures([3])]
    before = [plain(part) for part in parts]
    merged = Evaluation.merge(part for part in parts)
    merged.add(LOG_PROBABILITIES[:1], LABELS[:1])
    merged.unreadable[Path("x")] = ""
    assert [plain(part) for part in parts] == before
    assert merged.images == 4


def test_what_merged_parts_say_of_themselves():
    """part, of and why stay where all agree; pictures that trained the model add up."""
    about = {"part": "val", "of": "birds", "why": "there is no test part"}
    one, two = of_pictures([1], **about, trained_on=1), of_pictures([2, 3], **about, trained_on=2)
    merged = Evaluation.merge([one, two])
    assert (merged.part, merged.of, merged.why, merged.trained_on) == ("val", "birds", "there is no test part", 3)
    other = Evaluation.merge([one, replace(two, part="test", why="")])
    assert (other.part, other.of, other.why, other.trained_on) == ("", "birds", "", 3)


def test_parts_that_do_not_belong_together_are_refused():
    with pytest.raises(UsageError, match="`parts` is empty"):
        Evaluation.merge([])
    with pytest.raises(UsageError, match="with different classes can't be merged"):
        Evaluation.merge([of_pictures([1]), Evaluation(NAMES[::-1])])
    with pytest.raises(UsageError, match="some of `parts` have records and others have none"):
        Evaluation.merge([of_pictures([1]), replace(of_pictures([2]), records=None)])
    with pytest.raises(UsageError, match="picture 4 has two records"):
        Evaluation.merge([of_pictures([1, 4]), of_pictures([4])])
    assert Evaluation.merge([of_pictures([1]), Evaluation(NAMES)]).images == 1, "a part may be empty"


def test_a_loss_that_is_not_finite_stays_so():
    log_probabilities = torch.tensor([[0.0, float("-inf")], [float("nan"), float("nan")], [-0.5, -1.0]])
    parts = [Evaluation(("a", "b")) for _ in range(3)]
    for part, row, label in zip(parts, log_probabilities, (1, 0, 0), strict=True):
        part.add(row[None], torch.tensor([label]))
    assert Evaluation.merge([parts[2], parts[0]]).loss == float("inf")
    assert np.isnan(Evaluation.merge(parts).loss)
    assert parts[2].loss == 0.5


# Saved and read again.
def test_a_state_holds_everything(tmp_path: Path) -> None:
    result = of_pictures(list(range(20)), part="val", of="birds", why="asked for by name", trained_on=4)
    torch.save(result.to_state(), tmp_path / "state.pt")
    again = Evaluation.from_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert plain(again) == plain(result)
    assert plain(Evaluation.merge([again, of_pictures(list(range(20, COUNT)))])) == plain(
        replace(WHOLE, trained_on=4)
    ), "it merges as it would have before"
    bare = Evaluation(NAMES)
    assert plain(Evaluation.from_state(bare.to_state())) == plain(bare)
    bare.loss_sum = ExactSum.of([0.5, float("inf")])
    assert Evaluation.from_state(bare.to_state()).loss_sum == bare.loss_sum


def test_states_of_earlier_versions_are_read() -> None:
    """They contain the loss as one rounded float, and no parts and records."""
    state = {
        "classes": ["ant", "bee"],
        "loss_sum": 2.9054334312677383,
        "confusion": torch.tensor([[3, 1], [0, 2]]),
        "top5_right": torch.tensor([4, 2]),
        "unreadable": {"birds/1.png": "is cut short"},
    }
    result = Evaluation.from_state(state)
    assert result.loss == 2.9054334312677383 / 6
    assert (result.classes, result.images, result.top1_error_percent) == (("ant", "bee"), 6, 16.6667)
    assert result.top5_right.tolist() == [4, 2]
    assert result.unreadable == {Path("birds/1.png"): "is cut short"}
    assert (result.part, result.trained_on, result.records) == ("", 0, None)
    assert result.to_state()["loss_sum"] == state["loss_sum"], "earlier versions can read it, too"

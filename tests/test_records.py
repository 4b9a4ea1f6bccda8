"""Records of pictures: their content, joining of parts, and their file."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.data.samples import Samples
from resnetkit.errors import UsageError
from resnetkit.evaluation.records import Records, joined, write_records

PROBABILITIES = torch.tensor([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75], [0.0, 1.0, 0.0]])


def records(*indices: int, top: int = 2) -> Records:
    places = torch.tensor(indices)
    return Records.of(PROBABILITIES[places].log(), torch.tensor([2, 2, 0])[places], places, top=top)


def test_the_most_probable_classes_are_kept() -> None:
    kept = records(0, 1, 2)
    assert kept.indices.tolist() == [0, 1, 2]
    assert kept.labels.tolist() == [2, 2, 0]
    assert kept.classes.tolist() == [[0, 1], [2, 0], [1, 0]], "the lower index first where two are equal"
    assert np.allclose(kept.probabilities, [[0.5, 0.25], [0.75, 0.125], [1.0, 0.0]], rtol=1e-6)
    assert np.allclose(kept.label_probabilities, [0.25, 0.75, 0], rtol=1e-6)
    assert np.allclose(kept.uncalibrated, [0.5, 0.75, 1], rtol=1e-6)
    assert [array.dtype for array in vars(kept).values()] == [np.int64] * 3 + [np.float32] * 3
    assert (len(kept), kept.top, records(0, top=9).top) == (3, 2, 3)
    assert repr(kept) == "Records(3 pictures, top 2)"


def test_records_are_joined_by_index() -> None:
    assert joined([records(2), records(1), records(0)]).to_state().keys() == records(0).to_state().keys()
    for name, tensor in joined([records(2, 0), records(1)]).to_state().items():
        assert torch.equal(tensor, records(0, 1, 2).to_state()[name]), name
    with pytest.raises(UsageError, match=r"picture 1 has two records. .* call `Records.within` first"):
        joined([records(0, 1), records(1)])
    with pytest.raises(UsageError, match="records of 1 and of 2 classes; give each the same `records`"):
        joined([records(0), records(1, top=1)])


def test_records_of_a_subset_are_placed_within_the_whole() -> None:
    placed = records(0, 1, 2).within(np.array([8, 3, 5]))
    assert placed.indices.tolist() == [3, 5, 8]
    assert placed.labels.tolist() == [2, 0, 2]
    assert placed.classes.tolist() == [[2, 0], [1, 0], [0, 1]]


def test_a_file_of_records_has_a_row_for_each_picture(tmp_path: Path) -> None:
    classes = ("ant", 'bee, "large"', "fly")
    in_memory = Samples(classes, np.array([2, 2, 0]), np.zeros((3, 4, 4, 3), np.uint8))
    file = tmp_path / "records.csv"
    file.write_text("what was there before")
    write_records(file, records(0, 2), classes, in_memory)
    rows = list(csv.reader(file.open(encoding="utf-8")))
    assert rows == [
        ["picture", "label", "class_1", "probability_1", "class_2", "probability_2", "label_probability"],
        ["0", "fly", "ant", "0.5", 'bee, "large"', "0.25", "0.25"],
        ["2", "ant", 'bee, "large"', "1.0", "ant", "0.0", "0.0"],
    ]
    paths = (Path("a/1.png"), Path("a/2.png"), Path("b/caf\udce9.png"))
    write_records(file, records(2), classes, Samples(classes, np.array([2, 2, 0]), paths=paths))
    (row,) = csv.DictReader(file.open(encoding="utf-8"))
    assert row["picture"] == r"b/caf\xe9.png", "a byte that is not UTF-8"
    assert [path.name for path in tmp_path.iterdir()] == ["records.csv"]

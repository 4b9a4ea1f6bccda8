"""The backends of a model: if one can't be opened, the next one is."""

from pathlib import Path

import pytest

from resnetkit.errors import UsageError
from resnetkit.infer.choice import Choice
from resnetkit.infer.graphs import cached_graph
from resnetkit.infer.predictor import Predictor
from resnetkit.infer.unloaded import find_model
from tunings import tuned


def test_a_damaged_graph_is_not_used(run_folder: Path) -> None:
    cached_graph(find_model(run_folder), backend="openvino").with_suffix(".bin").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"openvino float32 can't be used, so torch float32 is used: .*Delete it, and it will be"
    ) as caught:
        assert Predictor(run_folder).choice.backend == "torch"
    assert caught[0].filename == __file__  # the warning names the line that made the Predictor


def test_an_int8_graph_that_was_deleted(run_folder: Path) -> None:
    model = find_model(run_folder)
    tuned(model.fingerprint, choice=Choice("openvino", "int8")).write(model)
    with pytest.warns(
        UserWarning, match=r"openvino int8 can't be used, so openvino float32 is used: .* has no int8 graph"
    ):
        assert Predictor(run_folder).choice == Choice("openvino", batch_size=32)
    with pytest.raises(UsageError, match=r"no int8 graph; make one .*resnetkit tune"):
        Predictor(run_folder, backend="openvino", precision="int8")

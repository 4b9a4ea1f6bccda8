"""Training pictures as the network sees them: the very pixels of the first batch."""

import numpy as np
import pytest
from PIL import Image

from resnetkit.cli import main
from resnetkit.data.dataset import open_dataset
from resnetkit.train.classification import prepare
from resnetkit.train.preview import write_preview
from resnetkit.train.recipe import RECIPES

RECIPE = RECIPES["folder"].replace(model="resnet20", size=32, batch_size=8, epochs=1, trivial_augment=True, erase=0.5)


def test_the_files_are_the_first_batch(picture_folder, tmp_path):
    dataset = open_dataset(picture_folder)
    done = write_preview(RECIPE, dataset, tmp_path / "seen", count=100)
    batch = next(prepare(RECIPE, dataset).loader.epoch())
    assert len(done.pictures) == 8
    for path, pixels, label in zip(done.pictures, batch.images, batch.labels, strict=True):
        assert np.array_equal(Image.open(path), pixels.permute(1, 2, 0))
        assert path.stem.endswith(dataset.classes[label])
    with Image.open(done.sheet) as sheet:
        assert min(sheet.size) > 400


def test_mixed_pictures_have_both_names(picture_folder, tmp_path):
    dataset = open_dataset(picture_folder)
    recipe = RECIPE.replace(mixup=1.0)
    done = write_preview(recipe, dataset, tmp_path / "seen", count=3)
    batch = next(prepare(recipe, dataset).loader.epoch())
    mixed = batch.mix.images(batch.images.float())
    assert np.array_equal(Image.open(done.pictures[2]), mixed[2].round().byte().permute(1, 2, 0))
    first, second = (dataset.classes[batch.labels[place]] for place in (1, 0))
    assert (
        done.pictures[1].stem
        == f"1-{first} {100 * batch.mix.share:.0f} %, {second} {100 - 100 * batch.mix.share:.0f} %"
    )


def test_the_command(picture_folder, tmp_path, capsys):
    given = ["data", "samples", str(picture_folder), str(tmp_path / "seen"), "--augmented", "--size", "32"]
    assert main([*given, "--model", "resnet20", "--count", "4", "--batch-size", "8", "--rotation", "30"]) == 0
    printed = capsys.readouterr().out.split("\n")
    assert len(printed) == 6
    assert printed[-2].endswith("sheet.png")
    assert main([*given, "--padding", "3"]) == 2
    assert "--padding has no effect here" in capsys.readouterr().err
    assert main([*given[:-3], "--rotation", "30"]) == 2
    assert "unknown flag --rotation" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        raise SystemExit(main([*given[:2], "--augmented", "--help"]))
    assert "--mixup" in capsys.readouterr().out

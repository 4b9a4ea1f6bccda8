"""The command line: help and errors as snapshots, exit codes, and standard output."""

import csv
import errno
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
import torch
import yaml
from PIL import Image
from syrupy.assertion import SnapshotAssertion

from resnetkit import __version__, cli
from resnetkit.cli import VERBS, main
from resnetkit.commands.parser import Parser
from resnetkit.commands.printing import flags_printed, print_json, print_table, set_flags
from resnetkit.data.decoding.opening import MOST_PIXELS, most_pixels
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.errors import UsageError
from resnetkit.evaluation import report
from resnetkit.modelfile import Header, inspect, save
from resnetkit.models import shipped
from resnetkit.models.published import imagenet_classes
from resnetkit.models.resnet import build
from resnetkit.models.spec import SPECS
from resnetkit.progress import Display
from resnetkit.train.monitor import Monitor
from resnetkit.train.recipe import DEFAULT_ROWS, LENGTHS, RECIPES, Recipe, read_recipe
from resnetkit.train.run_folder import RunFolder

CLASSES = ("cat", "frog", "ship")
SMALL = ["--model", "resnet20,depths=1-1-1", "--size", "32", "--epochs", "2", "--batch-size", "16", "--threads", "1"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run in an empty folder, on a terminal of fixed width."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


@pytest.fixture
def model(here: Path) -> str:
    """An untrained model file of three classes."""
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=3).eval()
    save(here / "model.safetensors", net, Header(net.spec, Preprocess(size=32), CLASSES))
    return "model.safetensors"


Shell = pytest.CaptureFixture[str]

# What every verb takes


@pytest.mark.parametrize("flag", ["--max-pixels 1023", "--max_pixels=1023"])
def test_the_largest_picture_that_is_taken(flag: str, model: str, picture_folder: Path, capsys: Shell) -> None:
    picture = str(next((picture_folder / "cat").iterdir()))
    predict = ["predict", model, picture, "--backend", "torch"]
    assert main([*flag.split(), *predict]) == 2  # a verb comes first
    capsys.readouterr()
    assert main([*predict, *flag.split()]) == 1
    assert "more than 1,023 pixels; make it smaller, or raise the limit by --max-pixels" in capsys.readouterr().out
    assert main([*predict[:2], *flag.split(), *predict[2:]]) == 1
    assert main([*predict, "--max-pixels", "1024"]) == 0
    assert main(predict) == 0
    assert most_pixels() == MOST_PIXELS
    capsys.readouterr()
    assert main(["data", "check", str(picture_folder), *flag.split()]) == 1
    assert "60 unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--max-pixels", "--max-pixels=many", "--max-pixels 0", "--max-pixels -- x"])
def test_a_number_of_pixels_that_is_none(flag: str, model: str, capsys: Shell) -> None:
    assert main(["predict", model, "x.png", *flag.split()]) == 2
    assert "--max-pixels needs a whole number over 0" in capsys.readouterr().err


def test_behind_two_dashes_there_are_no_flags(model: str, capsys: Shell) -> None:
    Image.new("RGB", (32, 32)).save("--debug", "PNG")
    Image.new("RGB", (32, 32)).save("--max-pixels", "PNG")
    assert main(["predict", model, "--backend", "torch", "--json", "--", "--debug", "--max-pixels"]) == 0
    assert [row["path"] for row in json.loads(capsys.readouterr().out)] == ["--debug", "--max-pixels"]


# Help


@pytest.mark.parametrize("argv", ["--help", *(f"{verb} --help" for verb in VERBS)])
def test_help(argv: str, capsys: Shell, snapshot: SnapshotAssertion) -> None:
    assert main(argv.split()) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out == snapshot


@pytest.mark.parametrize("action", ["get", "check", "samples", "next", "convert"])
def test_help_of_data(action: str, capsys: Shell, snapshot: SnapshotAssertion) -> None:
    assert main(["data", action, "-h"]) == 0
    assert capsys.readouterr().out == snapshot


@pytest.mark.parametrize("action", ["train", "evaluate", "predict"])
def test_help_of_detect(action: str, capsys: Shell, snapshot: SnapshotAssertion) -> None:
    assert main(["detect", action, "-h"]) == 0
    assert capsys.readouterr().out == snapshot


def test_version(capsys: Shell) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"resnetkit {__version__}\n"


# Wrong use: exit code 2, and one or two lines that name the flag


@pytest.mark.parametrize(
    "argv",
    [
        "",
        "trian cifar10",
        "fly",
        "--jsn",
        "models resnet21",
        "models resnet20,shortcut=D",
        "models resnet20,widht=4",
        "models resnet20 resnet32",
        "models --jsn",
        "train",
        "train pictures --lrr 1",
        "train pictures --lr",
        "train pictures --lr fast",
        "train pictures --size 1.5",
        "train pictures --schedule cosin",
        "train pictures --jitter 3",
        "train pictures --milestones 0.5,late",
        "train pictures --epoch 3",
        "train pictures --flip=maybe",
        "train pictures --batch-size 0",
        "train pictures --recipe papercifar10",
        "train pictures --config none.yaml",
        "train pictures --resume",
        "train --resume run --lr 1 --no-flip",
        "train pictures --epochs 3 --iterations 4",
        "train pictures --minutes 1 --epochs 3",
        "train pictures --muon-lr 0.1",
        "train pictures --milestones 0.3 --schedule cosine",
        "train pictures --freeze 2",
        "train pictures --train-split 50k",
        "train pictures/train --val-fraction 0.3",
        "train pictures --allow-other-arithmetic",
        "train pictures --size 9 --model resnetblur50",
        "recipes fodler",
        "recipes --jsn",
        "evaluate",
        "evaluate model.safetensors",
        "evaluate model.safetensors pictures --views ten",
        "evaluate model.safetensors pictures --split dev",
        "evaluate model.safetensors pictures --report none/report.html",
        "evaluate model.safetensors pictures --report pictures",
        "predict model.safetensors",
        "predict model.safetensors cat.png --top many",
        "predict model.safetensors cat.png --top 0",
        "predict model.safetensors cat.png --top 0 --csv",
        "predict model.safetensors cat.png --batch_size 0",
        "predict model.safetensors cat.png --json --csv",
        "data",
        "data got cifar10",
        "data get cifar11",
        "data check",
        "data check pictures --workers 0",
        "data samples pictures out --count 0",
        "doctor now",
        "doctor --quik",
    ],
)
def test_wrong_use(argv: str, model: str, picture_folder: Path, capsys: Shell, snapshot: SnapshotAssertion) -> None:
    assert model
    assert picture_folder.is_dir()
    if "pictures/train" in argv:
        for part in ("train", "val"):
            shutil.copytree("pictures", f"split/{part}")
        argv = argv.replace("pictures/train", "split")
    assert main(argv.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == snapshot


@pytest.mark.parametrize(
    "argv",
    [
        "evaluate none.safetensors pictures",
        "evaluate model.safetensors nowhere",
        "evaluate model.safetensors pictures --split test",
        "evaluate pictures pictures",
        "predict none.safetensors cat.png",
        "train --resume pictures",
        "train pictures --resume run",
        "data check empty",
    ],
)
def test_failures(argv: str, model: str, picture_folder: Path, capsys: Shell, snapshot: SnapshotAssertion) -> None:
    assert model
    assert picture_folder.is_dir()
    Path("empty").mkdir()
    assert main(argv.split()) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == snapshot


@pytest.mark.parametrize(
    "content",
    [
        "lr: fast",
        "learning_rate: 0.1",
        "batchsize: 3",
        "- 1",
        "schedule: cosin",
        "lr: null",
        "batch_size: x",
        "batch_size: 0",
        "epochs: 2\nminutes: 1",
    ],
)
def test_wrong_configuration(content: str, picture_folder: Path, capsys: Shell, snapshot: SnapshotAssertion) -> None:
    Path("own.yaml").write_text(content)
    assert main(["train", str(picture_folder), "--config", "own.yaml"]) == 2
    assert capsys.readouterr().err == snapshot


def test_configuration_that_is_no_text(picture_folder: Path, capsys: Shell) -> None:
    Path("own.yaml").write_bytes(b"\x93\xff\x00\x01")
    assert main(["train", "pictures", "--config", "own.yaml"]) == 2
    assert capsys.readouterr().err.startswith(
        "resnetkit train: own.yaml is not a text file in UTF-8; give a YAML file\n"
    )


@pytest.mark.parametrize("content", ["", "\n", "---\n# nothing yet\n"])
def test_an_empty_configuration_changes_nothing(content: str, capsys: Shell) -> None:
    Path("own.yaml").write_text(content)
    assert main(["train", "nowhere", "--config", "own.yaml"]) == 1
    assert "nowhere: no such data" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--milestones", "0.2,0.9"], ["--milestones=[0.2,0.9]"], ["--milestones=0.2,0.9"]])
def test_lists(flags: list[str]) -> None:
    parser = Parser("train", "", "")
    parser.add_class_arguments(Recipe)
    assert parser.read([*flags, "--jitter", "3,4", "--lr", "1"], defaults=False) == {
        "milestones": (0.2, 0.9),
        "jitter": (3, 4),
        "lr": 1.0,
    }


def test_files_of_another_kind(picture_folder: Path, capsys: Shell) -> None:
    Path("own.yaml").write_text("lr: [")
    assert main(["train", picture_folder.name, "--config", "own.yaml"]) == 2
    assert capsys.readouterr().err.startswith("resnetkit train: own.yaml: not YAML: ")
    Path("own.safetensors").write_text("no weights")
    assert main(["predict", "own.safetensors", "pictures"]) == 1
    assert capsys.readouterr().err.startswith("resnetkit predict: own.safetensors is not a whole .safetensors file")


# Fields in messages: flags on the terminal, Python's names in what programs read


def running(run: Callable[[list[str]], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the work of every verb by this function."""
    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(run=run))


def test_fields_are_printed_as_flags_everywhere(capsys: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> int:
        parser = Parser("train", "DATA", "")
        parser.add_argument("data", metavar="DATA", help="in the place of `data`")
        parser.add_class_arguments(Recipe)
        parser.add_argument("--resume")
        parser.read(argv)
        logging.StreamHandler().emit(logging.makeLogRecord({"msg": "`lr` in a log line"}))
        with Display() as display:
            display.say("`batch_size` above a bar, and `depths`")
        Thread(target=lambda: print("`data` in a thread", file=sys.stderr)).start()
        warnings.warn("`max_pixels` in a warning", stacklevel=1)
        print("`val_fraction` in a result")
        print_json({"`lr`": "`lr`"})
        raise UsageError("`run_folder` in an error, and `flip`")

    running(run, monkeypatch)
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(f"warning: {message}", file=sys.stderr))
    assert main(["models", "pictures"]) == 2
    out, err = capsys.readouterr()
    assert out == '--val-fraction in a result\n{\n  "`lr`": "`lr`"\n}\n'
    for words in (
        "--lr in a log line\n",
        "--batch-size above a bar, and `depths`\n",
        "DATA in a thread\n",
        "warning: --max-pixels in a warning\n",
        "resnetkit models: --resume in an error, and --flip\n",
    ):
        assert words in err
    assert main(["models", "-h"]) == 0
    assert "in the place of DATA" in capsys.readouterr().out
    assert main(["models", "pictures", "--debug"]) == 2
    assert "UsageError: `run_folder` in an error" in capsys.readouterr().err
    print("`lr`")
    assert capsys.readouterr().out == "`lr`\n", "the streams are as they were"


def test_a_verb_has_no_flags_of_another(capsys: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> int:
        Parser("predict", "", "").read([])
        raise UsageError("`lr`, `max_pixels`")

    running(run, monkeypatch)
    assert main(["predict"]) == 2
    assert capsys.readouterr().err.startswith("resnetkit predict: `lr`, --max-pixels\n")


def test_the_log_of_a_run_keeps_the_names_of_fields(here: Path, capsys: Shell) -> None:
    with flags_printed():
        set_flags({"lr": "--lr"})
        with Monitor(RunFolder(here)) as monitor:
            monitor.say("give `lr` 0.1")
    assert capsys.readouterr().err == "give --lr 0.1\n"
    assert RunFolder(here).log.read_text().endswith(" give `lr` 0.1\n")


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_names_in_documents_stay_as_they_are(form: str, model: str, capsys: Shell) -> None:
    Image.new("RGB", (32, 32)).save("`top`.png")
    assert main(["predict", model, "`top`.png", "--backend", "torch", form]) == 0
    assert "`top`.png" in capsys.readouterr().out


def test_a_table_of_names_that_are_escaped(capsys: Shell) -> None:
    print_table(("class", "train"), [("a\udce9\n", "1"), ("ab", "1,000")])
    assert capsys.readouterr().out.splitlines() == ["class    train", "a\\xe9\\n      1", "ab       1,000"]


def test_a_table_where_letters_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    print_table(("class", "train"), [("\u00e9", "1"), ("abc", "22")])
    stream.flush()
    assert stream.buffer.getvalue().decode() == "class  train\n\\xe9       1\nabc       22\n"


# What escapes from a verb


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(cli, "import_module", lambda name: SimpleNamespace(run=run))


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), "resnetkit models: a/b: Permission denied"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "resnetkit models: standard output: No space left on device",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate"), "resnetkit models: a file: Cannot allocate"),
        (MemoryError(), "resnetkit models: out of memory; give a smaller --batch-size or a smaller network"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "resnetkit models: out of memory; give a smaller --batch-size or a smaller network",
        ),
        (ZeroDivisionError("x"), "resnetkit models: internal error: ZeroDivisionError: x; run again with --debug"),
    ],
)
def test_surprises_are_one_line(error: Exception, line: str, capsys: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(error, monkeypatch)
    assert main(["models"]) == 1
    assert capsys.readouterr().err == f"{line}\n"


def test_an_interrupt_is_130(capsys: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(KeyboardInterrupt(), monkeypatch)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "\nresnetkit models: interrupted\n"


@pytest.mark.parametrize("argv", [["--debug", "models", "resnet21"], ["models", "resnet21", "--debug"]])
def test_debug_shows_the_traceback(argv: list[str], capsys: Shell) -> None:
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert 'UsageError: unknown model "resnet21"' in err


def test_a_reader_that_leaves_is_no_error(model: str, picture_folder: Path) -> None:
    command = [sys.executable, "-m", "resnetkit", "predict", model, str(picture_folder), "--batch-size", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = [line for line in process.stderr.read().splitlines() if not line.startswith("predicting: ")]
        assert said == [], "but for how far it is, on a slow machine"
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "resnetkit", "models"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "resnetkit models: standard output: No space left on device\n")


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "resnetkit", "models", "--jsn"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "resnetkit models: unknown flag --jsn; did you mean --json?\nSee resnetkit models --help.\n"


# models


def test_models_table(here: Path, capsys: Shell, snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "FOLDER", here)  # tests/test_shipped.py has a package with models
    assert main(["models"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(SPECS)
    assert out == snapshot


def test_one_model(capsys: Shell, snapshot: SnapshotAssertion) -> None:
    assert main(["models", "resnet20,shortcut=C,classes=100"]) == 0
    assert capsys.readouterr().out == snapshot


def test_models_json(capsys: Shell) -> None:
    assert main(["models", "resnet50_v1", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert (one["layers"], one["parameters"], one["channels"]) == (50, 25_557_032, [256, 512, 1024, 2048])
    assert one["downsample_in"] == "1x1"
    assert one.pop("weights") == []  # tests/test_weights.py has networks with some
    assert main(["models", "--json"]) == 0
    every = json.loads(capsys.readouterr().out)
    assert one in every
    assert [row["name"] for row in every] == list(SPECS)


# train, evaluate, predict: one after another, on real pictures


def test_train_evaluate_predict(split_folder: Path, capsys: Shell) -> None:
    data = split_folder.name
    assert main(["train", data, *SMALL, "--no_flip", "--out", "run", "--json"]) == 0
    out, err = capsys.readouterr()
    trained = json.loads(out)
    assert set(trained) == {"run", "model", "best", "images_per_second", "seconds", "rungs"}
    assert (trained["run"], trained["model"]) == ("run", "run/best.safetensors")
    assert trained["images_per_second"] > 0
    assert trained["rungs"] == []  # from random weights
    assert 0 < trained["best"]["error_percent"] <= 100
    assert "validation error" in err
    recipe = Path("run/recipe.yaml").read_text()
    assert "flip: false" in recipe
    assert "crop: random-resized" in recipe  # the row for folders

    # The same number in training, and from the command line on the same pictures.
    assert main(["evaluate", "run", data, "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1_error_percent"] == trained["best"]["error_percent"]

    assert main(["evaluate", "run", data, "--json", "--batch-size", "7", "--workers", "1"]) == 0
    measured = json.loads(capsys.readouterr().out)
    part = {
        "part": "test",
        "of": data,
        "why": "the test part of the set that the model was trained on",
        "trained_on": 0,
    }
    first = ["images", "top1_error_percent", "top5_error_percent", "loss", "per_class", *part]
    assert list(measured)[: len(first)] == first
    assert {name: measured[name] for name in part} == part
    assert measured["images"] == 120  # test, and not the rest
    assert set(measured["per_class"]) == {path.name for path in (split_folder / "test").iterdir()}
    assert measured["per_class"]["frog"]["images"] == 12

    # Counted by hand from the predictions.
    assert main(["predict", "run", f"{data}/test", "--json", "--top", "1"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    wrong = [row for row in predicted if Path(row["path"]).parent.name != row["predictions"][0]["label"]]
    assert len(predicted) == 120
    assert 100 * len(wrong) / 120 == pytest.approx(measured["top1_error_percent"], abs=1e-3)

    assert main(["evaluate", "run", data, "--report", "test.html"]) == 0
    out, err = capsys.readouterr()
    assert err == "resnetkit evaluate: the report is test.html\n"
    assert out.startswith("120 test pictures of split, single view\n")
    assert f"top-1 error  {measured['top1_error_percent']:.2f} %" in out
    assert "<h2>On 120 test pictures</h2>" in Path("test.html").read_text()

    assert main(["train", data, *SMALL, "--out", "run"]) == 1
    assert "run exists already" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--json"]) == 0  # it had ended: nothing to do, and nothing changes
    again = json.loads(capsys.readouterr().out)
    assert (again["model"], again["best"]) == (trained["model"], trained["best"])


def test_training_in_the_folder_of_the_pictures(
    picture_folder: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run folder is among the class folders. It is not a class, when the run goes on and in another run."""
    monkeypatch.chdir(picture_folder)
    monkeypatch.setenv("HOME", str(picture_folder.parent))
    assert main(["train", ".", *SMALL]) == 0
    (run,) = Path("runs").iterdir()
    capsys.readouterr()
    assert main(["evaluate", str(run), ".", "--split", "val", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert main(["train", "~/pictures", *SMALL, "--out", "../second"]) == 0
    header = inspect(Path("../second"))
    assert header.classes == CLASSES
    assert header.data["fingerprint"] == inspect(run).data["fingerprint"]
    assert f"data: {picture_folder}\n" in Path("../second/recipe.yaml").read_text()
    left_out = f"left out: {picture_folder}/runs: contains a training run, not data"
    assert left_out in Path("../second/log.txt").read_text()


def test_data_that_can_be_read_in_two_ways(split_folder: Path, capsys: Shell) -> None:
    """It is refused, with the flag that decides. Going on and evaluating use the flag of the run."""
    (split_folder / "train").rename(split_folder / "Training")
    (split_folder / "test").rename(split_folder / "more")
    assert main(["data", "check", "split"]) == 1
    assert "--parts train=Training,test=more; or as classes, Training/, more/: --parts none" in capsys.readouterr().err
    parts = ["--parts", "train=Training,test=more"]
    assert main(["data", "check", "split", *parts]) == 0
    assert "note: parts: train = Training/, test = more/" in capsys.readouterr().out
    assert main(["train", "split", *SMALL, *parts, "--out", "run"]) == 0
    said = capsys.readouterr().err
    assert said.index("parts: train = Training/, test = more/") < said.index("step 15")
    assert main(["train", "--resume", "run"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "split", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 120
    assert "resnetkit evaluate: parts: train = Training/, test = more/\n" in err
    assert inspect("run").data["split"]["read_as"] == {"parts": "train=Training,test=more"}


def test_a_list_whose_pictures_are_elsewhere(
    picture_folder: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [f"{path.relative_to(picture_folder)};{path.parent.name};x" for path in picture_folder.glob("*/*")]
    Path("lists").mkdir()
    Path("lists/labels.csv").write_text("a;b;c\n" + "\n".join(rows) + "\n")
    flags = ["--images", "pictures", "--path-column", "a", "--label-column", "b"]
    assert main(["train", "lists/labels.csv", *SMALL, *flags, "--out", "run"]) == 0
    assert "labels.csv: separated by semicolons, path = a, label = b\n" in capsys.readouterr().err
    assert main(["evaluate", "run", "lists/labels.csv", "--images", "pictures", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12
    assert inspect("run").data["split"]["read_as"] == {"path_column": "a", "label_column": "b"}
    monkeypatch.chdir("lists")
    assert main(["train", "--resume", "../run"]) == 0


def test_configuration_then_flags(picture_folder: Path, capsys: Shell) -> None:
    Path("own.yaml").write_text("weight_decay: 3e-4\nlr: 0.02\nmilestones: [0.2, 0.9]\nflip: no\n")
    flags = ["--lr", "0.03", "--recipe", "paper-cifar10", "--normalize", "imagenet", "--iterations", "1"]
    assert (
        main(["train", "pictures", "--out", "run", *SMALL[:4], "--batch-size", "8", *flags, "--config", "own.yaml"])
        == 0
    )
    recipe = Path("run/recipe.yaml").read_text()
    for line in ("weight_decay: 0.0003", "lr: 0.03", "flip: false", "iterations: 1", "schedule: step", "crop: pad"):
        assert f"{line}\n" in recipe
    assert "model             run/best.safetensors" in capsys.readouterr().out
    # A run's own recipe is a configuration.
    assert main(["train", "pictures", "--config", "run/recipe.yaml", "--out", "run2"]) == 0
    own, repeated = (Path(f"{run}/recipe.yaml").read_text().split("run:")[0] for run in ("run", "run2"))
    assert own == repeated


@pytest.mark.parametrize("length", ["minutes: 9", "iterations: 9", "epochs: 9"])
def test_a_flag_wins_over_the_length_in_a_file(length: str, picture_folder: Path, capsys: Shell) -> None:
    Path("own.yaml").write_text(f"{length}\nmuon_lr: 0.5\nmin_area: 0.5\nval_fraction: 0.2\n")
    flags = [
        "--config",
        "own.yaml",
        "--out",
        "run",
        *SMALL[:4],
        "--batch-size",
        "32",
        "--epochs",
        "1",
        "--crop",
        "none",
    ]
    assert main(["train", "pictures", *flags]) == 0
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert [recipe.get(name) for name in LENGTHS] == [1.0, None, None]
    err = capsys.readouterr().err
    assert "own.yaml: muon_lr has no effect here: it needs --optimizer muon\n" in err
    assert "own.yaml: min_area has no effect here: it needs --crop random-resized\n" in err
    assert "val_fraction has no effect" not in err
    assert main(["train", "pictures", "--config", "run/recipe.yaml", "--iterations", "1", "--out", "run2"]) == 0
    assert "has no effect" not in capsys.readouterr().err, "a run's own file records, and asks for nothing"


def test_a_run_goes_on_to_another_length(picture_folder: Path, capsys: Shell) -> None:
    flags = [*SMALL[:4], "--batch-size", "24", "--schedule", "constant", "--compile", "off", "--out", "run"]
    assert main(["train", "pictures", *flags, "--epochs", "1"]) == 0
    assert main(["train", "--resume", "run"]) == 0
    assert "run is finished; train on with: resnetkit train --resume run --epochs N\n" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--epochs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["best"]["step"] in (2, 4)
    assert yaml.safe_load(Path("run/recipe.yaml").read_text())["epochs"] == 2


# recipes


def test_recipes_table(capsys: Shell, snapshot: SnapshotAssertion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out == snapshot


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_that_is_printed_is_a_configuration(name: str, capsys: Shell) -> None:
    assert main(["recipes", name]) == 0
    Path("own.yaml").write_text(capsys.readouterr().out)
    assert read_recipe(Path("own.yaml"), Recipe(minutes=3, lr=9)) == (RECIPES[name], {})
    assert main(["train", "nowhere", "--config", "own.yaml"]) == 1  # the file is taken, the data is not there
    assert "nowhere: no such data" in capsys.readouterr().err
    assert main(["recipes", name, "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert one["recipe"] == json.loads(json.dumps(RECIPES[name].to_dict()))
    assert one["purpose"]
    assert main(["recipes", "--json"]) == 0
    assert one in json.loads(capsys.readouterr().out)


def test_help_says_what_the_default_rows_say(capsys: Shell) -> None:
    """For every field: one value if both rows have the same, else both values; nothing if it is unset in both."""
    assert main(["train", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in ("(cifar10 muon, folder sgd)", "(cifar10 0.2, folder 0.05)", "(cifar10 128, folder 32)"):
        assert words in text
    rows = [RECIPES[name].to_dict() for name in DEFAULT_ROWS]
    agreed = [name for name in rows[0] if rows[0][name] == rows[1][name] and rows[0][name] is not None]
    assert text.count("(default ") == len(agreed)
    assert text.count("(cifar10 ") == sum(rows[0][name] != rows[1][name] for name in rows[0])


def test_evaluate_says_when_it_sees_the_training_pictures(picture_folder: Path, capsys: Shell) -> None:
    assert main(["train", "pictures", *SMALL, "--out", "run", "--seed", "3", "--val-fraction", "0.5"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "run", "pictures"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("30 val pictures of pictures, single view\nval: the pictures that training kept out")
    assert err == ""
    Path("pictures").rename("moved")
    assert main(["evaluate", "run", "moved", "--split", "all"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("all 60 pictures of moved")
    assert "resnetkit evaluate: 30 of these 60 pictures trained the model" in err
    assert main(["evaluate", "run", "moved", "--split", "train", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["notes"] == [
        "these pictures trained the model: on new pictures, the error may be much larger"
    ]
    Path("moved").rename("pictures")
    assert main(["evaluate", "run", "pictures", "--split", "val"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("30 val pictures")
    assert err == ""


def test_a_report_at_home(model: str, picture_folder: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(picture_folder))
    assert main(["evaluate", model, "pictures", "--report=~/report.html"]) == 0
    assert f"the report is {picture_folder / 'report.html'}" in capsys.readouterr().err
    assert "<h2>On 60 all pictures</h2>" in (picture_folder / "report.html").read_text()


def test_records_of_an_evaluation(model: str, picture_folder: Path, capsys: Shell) -> None:
    (picture_folder / "cat" / "broken.png").write_bytes(b"\x89PNG")
    assert main(["evaluate", model, "pictures", "--records", "records.csv", "--views", "multi-scale", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err.endswith("resnetkit evaluate: the result of each picture is in records.csv\n")
    rows = list(csv.DictReader(io.StringIO(Path("records.csv").read_text(encoding="utf-8"))))
    assert all(Path(row["picture"]).parent.name == row["label"] for row in rows)
    assert len({row["picture"] for row in rows}) == len(rows) == json.loads(out)["images"] == 60
    wrong = sum(row["class_1"] != row["label"] for row in rows)
    assert json.loads(out)["top1_error_percent"] == pytest.approx(100 * wrong / 60, abs=1e-4)
    assert list(rows[0])[-3:] == ["class_3", "probability_3", "label_probability"]
    assert main(["evaluate", model, "pictures", "--csv", "x", "--report", "x"]) == 2
    assert "--report and --csv are both x; give two files" in capsys.readouterr().err
    assert main(["evaluate", model, "pictures", "--csv", "records.csv"]) == 2
    assert "--csv records.csv exists already; give another file, or --force to replace it" in capsys.readouterr().err
    assert main(["evaluate", model, "pictures", "--csv", "records.csv", "--force"]) == 0
    for flag, file in (("--csv", model), ("--report", next(str(p) for p in Path("pictures").rglob("*.png")))):
        before = Path(file).read_bytes()
        assert main(["evaluate", model, "pictures", flag, file, "--force"]) == 2
        assert f"{flag} {file} is the model or the data that are read" in capsys.readouterr().err
        assert Path(file).read_bytes() == before


def test_a_report_that_cannot_be_written_does_not_lose_the_result(
    model: str, picture_folder: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_report(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    monkeypatch.setattr(report, "write_report", write_report)
    assert main(["evaluate", model, "pictures", "--report", "report.html", "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 60
    assert err == "resnetkit evaluate: report.html: No space left on device\n"


def test_evaluate_names_what_is_left_out(model: str, picture_folder: Path, capsys: Shell) -> None:
    (picture_folder / "labels.csv").write_text("path,label\ncat/cat 00.png,cat\ngone.png,frog\n")
    assert main(["evaluate", model, "pictures/labels.csv", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 1
    assert "evaluate: 1 of 2 files are missing, first pictures/gone.png: does not exist (" in err
    assert main(["evaluate", model, "pictures/labels.csv", "--strict"]) == 1
    assert "gone.png does not exist" in capsys.readouterr().err


def test_json_has_no_number_that_is_none(capsys: Shell) -> None:
    print_json({"loss": float("nan"), "rows": [(1.5, float("inf"))]})
    assert json.loads(capsys.readouterr().out) == {"loss": None, "rows": [[1.5, None]]}


def test_predict_reports_failures_beside_results(model: str, picture_folder: Path, capsys: Shell) -> None:
    (picture_folder / "cat" / "broken.png").write_bytes(b"nothing")
    argv = ["predict", model, "pictures/cat", "none.png", "pictures/ship/*.jpg"]
    assert main([*argv, "--json", "--top", "2"]) == 1
    out, err = capsys.readouterr()
    rows = json.loads(out)
    assert len(rows) == 20 + 1 + 1 + 10
    assert {row["path"] for row in rows if "error" in row} == {"pictures/cat/broken.png", "none.png"}
    assert err == "resnetkit predict: 2 not predicted, first pictures/cat/broken.png\n"
    for row in rows:
        if "error" not in row:
            assert set(row) == {"path", "predictions"}
            assert [set(best) for best in row["predictions"]] == [{"label", "index", "probability"}] * 2

    assert main([*argv, "--csv", "--top", "1"]) == 1
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(line["path"], line["label"]) for line in lines] == [
        (row["path"], row["predictions"][0]["label"] if "predictions" in row else "") for row in rows
    ]

    assert main([*argv, "--top", "1"]) == 1
    text = capsys.readouterr().out
    assert f"pictures/cat/cat 00.png\n  {100 * rows[1]['predictions'][0]['probability']:6.2f} %  " in text
    assert "none.png\n  error: no such file or folder, and nothing matches it\n" in text


def test_predict_nothing_is_an_empty_list(model: str, capsys: Shell) -> None:
    Path("empty").mkdir()
    assert main(["predict", model, "empty", "--json"]) == 1
    assert [set(row) for row in json.loads(capsys.readouterr().out)] == [{"path", "error"}]


# data


def test_data_check(picture_folder: Path, capsys: Shell) -> None:
    assert main(["data", "check", "pictures", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {part: sum(count.values()) for part, count in report["counts"].items()} == {"train": 48, "val": 12}
    assert (report["unreadable"], report["skipped"], report["leaks"]) == ([], {}, [])
    (picture_folder / "frog" / "broken.png").write_bytes(b"nothing")
    (picture_folder / "frog" / "notes.txt").write_text("x")
    assert main(["data", "check", "pictures"]) == 1
    out = capsys.readouterr().out
    assert "unreadable: pictures/frog/broken.png: " in out
    assert "skipped: pictures/frog/notes.txt: not a picture by its suffix" in out
    assert out.splitlines()[0].split() == ["class", "train", "val"]


def test_data_check_for_scripts(split_folder: Path, capsys: Shell) -> None:
    """What --json promises: see docs/data.md."""
    shutil.copy("split/train/cat/cat 00.png", "split/test/dog/copy.png")
    Path("split/train/cat/broken.png").write_bytes(b"nothing")
    assert main(["data", "check", "split", "--json", "--page", "page.html", "--parts", "train=train,test=test"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["data"] == "split"
    assert report["parts"]["test"]["dog"] == 13
    assert report["unreadable"] == [
        {"path": "split/train/cat/broken.png", "reason": "not a picture of a known kind, or broken at its beginning"}
    ]
    (group,) = report["duplicates"]
    assert group["kind"] == "same"
    assert sorted(group["paths"]) == ["split/test/dog/copy.png", "split/train/cat/cat 00.png"]
    assert {*group["parts"]} == {"train", "test"} or {*group["parts"]} == {"val", "test"}
    assert sorted(group["labels"]) == ["cat", "dog"]
    assert report["shortcuts"] == report["problems"] == []
    page = Path("page.html").read_text()
    assert "copy.png" in page
    assert "data:image/jpeg;base64," in page
    assert "http" not in page, "no address outside the page"


def test_data_check_fixes_and_takes_back(split_folder: Path, capsys: Shell) -> None:
    before = sorted(Path("split").rglob("*"))
    Path("split/train/cat/broken.png").write_bytes(b"nothing")
    Image.open("split/train/cat/cat 00.png").save("split/test/cat/copy.bmp")
    there = sorted(Path("split").rglob("*"))
    assert main(["data", "check", "split", "--fix"]) == 1
    assert "2 files moved to split-set-aside\n" in capsys.readouterr().err.replace(f"{Path.cwd()}/", "")
    assert {*there} - {*Path("split").rglob("*")} == {
        Path("split/train/cat/broken.png"),
        Path("split/train/cat/cat 00.png"),
    }, "the copy that measures stays"
    assert main(["data", "check", "split"]) == 0
    (listed,) = Path("split-set-aside").glob("undo-*.json")
    assert main(["data", "check", "--undo", str(listed)]) == 0
    assert "2 files moved back" in capsys.readouterr().out
    assert sorted(Path("split").rglob("*")) == there
    assert len(there) == len(before) + 2
    assert main(["data", "check", "split", "--undo", str(listed)]) == 2
    assert "--undo takes a list alone" in capsys.readouterr().err


def test_data_check_says_what_there_is_to_mend(picture_folder: Path, capsys: Shell) -> None:
    assert main(["data", "check", "pictures"]) == 0
    out = capsys.readouterr().out
    assert "note: val is drawn: 12 of the 60 training pictures" in out
    assert out.endswith("\nnothing to fix\n")
    shutil.copy("pictures/cat/cat 00.png", "pictures/frog/a frog.png")
    assert main(["data", "check", "pictures"]) == 1
    out = capsys.readouterr().out
    assert "one picture, several classes: " in out
    assert "pictures/frog/a frog.png (frog)" in out
    assert "\nto fix: 1 in several classes" in out
    assert main(["data", "check", "pictures", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert len(report["contradictions"]) == 1
    assert len(report["notes"]) == 1
    assert report["copies"] == report["problems"] == []


def test_data_in_the_home_folder(picture_folder: Path, capsys: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not replace ~ in --from=~/x and in quotes."""
    monkeypatch.setenv("HOME", str(picture_folder.parent))
    assert main(["data", "samples", "~/pictures", "~/out", "--count", "1"]) == 0
    assert capsys.readouterr().out == f"{picture_folder.parent}/out/0000-cat.png\n"
    assert main(["data", "get", "cifar10", "--from=~/nowhere"]) == 1
    assert f"{picture_folder.parent}/nowhere does not exist" in capsys.readouterr().err


def test_data_samples(split_folder: Path, capsys: Shell) -> None:
    assert main(["data", "samples", split_folder.name, "out/few", "--count", "3"]) == 0
    written = capsys.readouterr().out.split()
    assert written == ["out/few/0000-airplane.png", "out/few/0012-automobile.png", "out/few/0024-bird.png"]
    first = split_folder / "test" / "airplane" / "airplane 00.png"
    assert Image.open(written[0]).tobytes() == Image.open(first).tobytes()
    Path("file").write_text("")
    assert main(["data", "samples", split_folder.name, "file/few"]) == 1
    assert "file/few/0000-airplane.png can't be written: Not a directory" in capsys.readouterr().err


def test_data_samples_passes_unreadable_pictures_over(picture_folder: Path, capsys: Shell) -> None:
    (picture_folder / "cat" / "a broken one.png").touch()
    assert main(["data", "samples", "pictures", "out", "--count", "3"]) == 0
    out, err = capsys.readouterr()
    assert [line.rpartition("-")[2] for line in out.splitlines()] == ["frog.png", "ship.png", "cat.png"]
    assert err == "resnetkit data samples: unreadable: pictures/cat/a broken one.png: the file is empty (0 bytes)\n"


def test_data_check_of_one_class(picture_folder: Path, capsys: Shell) -> None:
    (picture_folder / "cat").rename("one")
    Path("root").mkdir()
    Path("one").rename("root/one")
    assert main(["data", "check", "root"]) == 1
    assert "to fix: all pictures are of one class, one; a classifier needs two or more" in capsys.readouterr().out
    assert main(["data", "check", "root", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


def test_data_get_from_a_folder_without_it(capsys: Shell) -> None:
    assert main(["data", "get", "cifar10", "--from", "nowhere"]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def test_an_interrupt_that_a_library_makes_another_error_of(monkeypatch: pytest.MonkeyPatch, capsys: Shell) -> None:
    """NumPy may raise this during its import."""

    def importing(arguments: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt as error:
            raise ImportError("initialization failed") from error
        return 0

    monkeypatch.setattr("resnetkit.cli._dispatch", importing)
    assert main(["train", "photos"]) == 130
    assert capsys.readouterr().err == "\nresnetkit train: interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("own_cache")
def test_evaluate_says_what_it_took(tmp_path: Path, capsys: Shell) -> None:
    """Numbers in the order of ImageNet's classes, files that are missing, and a folder without labels, each once."""
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=1000).eval()
    save(tmp_path / "m.safetensors", net, Header(net.spec, Preprocess(size=32), imagenet_classes()))
    for name in ("1.png", "2.png", "more/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32)).save(tmp_path / name)
    (tmp_path / "val.txt").write_text("1.png 0\n2.png 281\n9.png 999\n")
    assert main(["evaluate", str(tmp_path / "m.safetensors"), str(tmp_path / "val.txt")]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"all 2 pictures of {tmp_path}/val.txt, single view\n")
    assert "resnetkit evaluate: labels are numbers: they are taken in the order of the model's 1,000 classes" in err
    assert f"resnetkit evaluate: 1 of 3 files are missing, first {tmp_path}/9.png: does not exist" in err
    folder = tmp_path / "set"
    for name in ("train/n01440764/1.png", "test/1.png", "test/2.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "1.png", folder / name)
    assert main(["evaluate", str(tmp_path / "m.safetensors"), str(folder), "--split", "all"]) == 0
    err = capsys.readouterr().err
    assert err.count("unlabelled, left out") == 1
    assert "of set left out" not in err


def test_max_pixels_stands_behind_the_verb(capsys: Shell) -> None:
    assert main(["--max-pixels", "9", "predict"]) == 2
    assert "--max-pixels must come after the verb: resnetkit predict --max-pixels N ..." in capsys.readouterr().err

"""With any terminal, locale, limits and folders, the program gives a result or a clear error."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resnetkit.commands.printing import on_one_line
from resnetkit.data.transforms.preprocess import Preprocess
from resnetkit.files import NOWHERE, cache_folder
from resnetkit.infer.unreported import unreported
from resnetkit.modelfile import Header, save
from resnetkit.models.resnet import build
from scenes import scene

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="a shell and its limits"),
    pytest.mark.usefixtures("compiled_once"),
]

CLASSES = ("chat noir", "чёрт")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A model of two classes, m.safetensors, and pictures of them in d, with names that few encodings contain."""
    torch.manual_seed(0)
    net = build("resnet20", depths=(1, 1, 1), classes=2).eval()
    save(tmp_path / "m.safetensors", net, Header(net.spec, Preprocess(size=32), CLASSES))
    for seed, name in enumerate(CLASSES):
        (tmp_path / "d" / name).mkdir(parents=True)
        for i in range(4):
            scene(40, 36, seed=10 * seed + i).save(tmp_path / "d" / name / f"é{i}.png")
    return tmp_path


def shell(world: Path, script: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a script in the folder `world`, where `rk` is the program."""
    program = f'rk() {{ "{sys.executable}" -m resnetkit "$@"; }}\n{script}'
    env = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "100"} | variables
    return subprocess.run(["bash", "-c", program], cwd=world, env=env, capture_output=True)


PREDICT = "rk predict m.safetensors d --backend torch --threads 1"
EVALUATE = "rk evaluate m.safetensors d --workers 1"
TRAIN = "rk train d --model resnet20,depths=1-1-1 --size 32 --epochs 1 --batch-size 4 --threads 1 --out run"
CHECK = "rk data check d"
MODELS = "rk models"


@pytest.mark.slow
@pytest.mark.parametrize("command", [MODELS, PREDICT, TRAIN])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
@pytest.mark.sampled(4)
def test_closed_streams(world: Path, command: str, closed: str) -> None:
    done = shell(world, f"{command} {closed}")
    lost = ">&-" in closed.split() and command is not TRAIN  # whose answer is a folder
    assert done.returncode == lost
    assert b"internal error" not in done.stderr
    assert b"Traceback" not in done.stderr
    if ">&-" not in closed.split():
        assert done.stdout
    if command is TRAIN:  # nothing that was printed went into a file that got the stream's number
        assert (world / "run" / "recipe.yaml").read_text().startswith("model:")
        assert shell(world, "rk evaluate run d").returncode == 0


def test_a_closed_stream(world: Path) -> None:
    """An answer that is lost is an error; that nobody reads errors or gives input is none."""
    done = shell(world, "rk models >&-")
    lost = b"resnetkit models: standard output is closed, so the result is lost; open it, for example with > FILE\n"
    assert (done.returncode, done.stderr) == (1, lost)
    assert shell(world, "rk --version 2>&- <&-").returncode == 0
    assert shell(world, "rk nothing >&- 2>&- <&-").returncode == 2
    assert shell(world, "rk --version <&- 2>&-").stdout.startswith(b"resnetkit ")


ENCODINGS = [
    {"PYTHONIOENCODING": "latin-1"},
    {"PYTHONIOENCODING": "ascii"},
    {"PYTHONIOENCODING": "cp437"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


@pytest.mark.slow
@pytest.mark.parametrize("variables", ENCODINGS, ids=lambda variables: " ".join(variables.values()))
@pytest.mark.parametrize("command", [PREDICT, f"{PREDICT} --json", EVALUATE, TRAIN])
@pytest.mark.sampled(5)
def test_names_are_escaped_where_an_encoding_lacks_them(world: Path, command: str, variables: dict[str, str]) -> None:
    done = shell(world, command, **variables)
    assert b"internal error" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0, done.stderr
    if command.endswith("--json"):
        labels = {best["label"] for row in json.loads(done.stdout) for best in row["predictions"]}
        assert labels == set(CLASSES)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("a\nb", "a\\nb"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("é [bold] *", "é [bold] *"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_a_name_is_one_line(name: str, line: str) -> None:
    assert on_one_line(name) == line


@pytest.mark.slow
def test_names_that_mean_something_to_a_shell(world: Path) -> None:
    names = ["-x.png", "[1].png", "*.png", "a\nb.png", "--debug", "[bold]é.png", "x?.png"]
    for name in names:
        scene(40, 36).save(world / name, "PNG")
    done = shell(
        world, "rk predict m.safetensors --backend torch --json -- -x.png '[1].png' '*.png' $'a\\nb.png' --debug"
    )
    assert [row["path"] for row in json.loads(done.stdout)] == names[:5]
    done = shell(world, "rk predict m.safetensors --backend torch $'a\\nb.png' '[bold]é.png'")
    assert done.returncode == 0
    assert [line for line in done.stdout.decode().splitlines() if line[0] != " "] == ["a\\nb.png", "[bold]é.png"]


@pytest.mark.slow
def test_names_that_are_not_utf8(world: Path) -> None:
    """File names of older systems and archives: they are read and written if possible, else an error names them."""
    os.link(world / "m.safetensors", os.fsencode(world / "m") + b"\xe9")
    done = shell(
        world,
        "e=$(printf '\\xe9'); rk evaluate m$e d; rk train d --out r$e; rk export m.safetensors --to onnx --out $e.onnx;"
        "rk convert m$e --model resnet20; rk predict m.safetensors d --backend torch --logits --out $e.npz && "
        "rk evaluate m.safetensors d --report $e.html > /dev/null && ls $e.npz $e.html",
    )
    refused = [line for line in done.stderr.decode().splitlines() if "the name is not UTF-8" in line]
    assert [line.split()[1] for line in refused] == ["evaluate:", "train:", "export:", "convert:"]
    assert b"internal error" not in done.stderr
    assert (done.returncode, done.stdout) == (0, b"\xe9.html\n\xe9.npz\n")


@pytest.mark.slow
def test_a_locale_of_ascii_divides_and_checks_as_any_other(world: Path) -> None:
    """The names in folders and lists, which Python reads as bytes there."""
    names = [f"{path.relative_to(world)},{path.parent.name}" for path in sorted((world / "d").glob("*/*"))]
    (world / "x.csv").write_text("path,label\n" + "\n".join(names), encoding="utf-8")
    program = (
        "from resnetkit.data.dataset import open_dataset; import sys; d = open_dataset(sys.argv[1]); "
        "print(ascii(d.classes), d.train.fingerprint(), d.val.fingerprint())"
    )
    for data in ("d", "x.csv"):
        one, other = (shell(world, f'"{sys.executable}" -c "{program}" {data}', **env) for env in ({}, ENCODINGS[-1]))
        assert one.stdout.startswith(b"(")
        assert one.stdout == other.stdout
        done = shell(world, f"rk data check {data}", **ENCODINGS[-1])
        assert (done.returncode, b"\\u0447" in done.stdout) == (0, True)


@pytest.mark.slow
def test_a_locale_of_ascii_is_at_fault_and_no_name(world: Path) -> None:
    (world / "é" / "ü").mkdir(parents=True)
    os.link(world / "m.safetensors", world / "é.safetensors")
    done = shell(
        world,
        f"rk evaluate é.safetensors d; rk train é --out r; {TRAIN.replace('run', 'r')}; "
        "rk export m.safetensors --out é.onnx",
        **ENCODINGS[-1],
    )
    said = [line for line in done.stderr.decode().splitlines() if " name " in line]
    assert [line.split()[1] for line in said] == ["evaluate:", "train:", "export:"]
    assert (world / "r" / "best.safetensors").is_file()
    assert {line.partition(" name ")[2] for line in said} == {"can't be read in this locale (ascii); set PYTHONUTF8=1"}


@pytest.mark.slow
def test_a_picture_from_standard_input(world: Path) -> None:
    picture = f"d/{CLASSES[0]}/é0.png"
    named = json.loads(shell(world, f"rk predict m.safetensors --backend torch --json '{picture}'").stdout)
    for given in ("-", f"- '{picture}'"):
        done = shell(world, f"rk predict m.safetensors --backend torch --json {given} < '{picture}'")
        rows = json.loads(done.stdout)
        assert rows[0]["path"] == "-"
        assert [best["label"] for best in rows[0]["predictions"]] == [b["label"] for b in named[0]["predictions"]]
        assert rows[0]["predictions"][0]["probability"] == pytest.approx(named[0]["predictions"][0]["probability"])
        assert len(rows) == 1 + (given != "-")
    done = shell(world, "rk predict m.safetensors --backend torch - --logits < /dev/null")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"resnetkit predict: -: the file is empty (0 bytes)" in done.stderr


def test_no_home_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESNETKIT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    assert cache_folder() == NOWHERE
    assert not cache_folder().exists()
    with pytest.raises(OSError, match="Not a directory"):
        cache_folder().mkdir(parents=True)


SURROUNDINGS = {
    "a home that can't be": "export HOME=/dev/null; unset XDG_CACHE_HOME RESNETKIT_CACHE",
    "a home that is not there": "export HOME=/proc/nobody; unset XDG_CACHE_HOME RESNETKIT_CACHE",
    "no folder for temporary files": "export TMPDIR=/nonexistent",
    "16 open files": "ulimit -n 16",
    "files of 2 KiB": "ulimit -f 2",
    "little memory": "ulimit -v 700000",
    "a folder that is gone": "mkdir gone; cd gone; rmdir ../gone",
    "a folder that can't be written": "cd /proc",
}


@pytest.mark.slow
@pytest.mark.parametrize("command", [CHECK, PREDICT, TRAIN])
@pytest.mark.parametrize("around", SURROUNDINGS)
@pytest.mark.sampled(5)
def test_an_internal_error_is_never_the_answer(world: Path, around: str, command: str) -> None:
    command = command.replace(" d ", f" {world}/d ").replace("m.safetensors", f"{world}/m.safetensors")
    done = shell(world, f"{SURROUNDINGS[around]}; {command}")
    assert b"internal error" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode in (0, 1, 2)
    assert done.returncode == 0 or done.stderr


NO_TEMPORARY = """
import sys, tempfile
def none(*_): raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")
tempfile._get_default_tempdir = none
from resnetkit.cli import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", [EVALUATE, TRAIN, PREDICT, CHECK])
def test_no_folder_for_temporary_files(world: Path, command: str) -> None:
    """As on a read-only root: none is needed."""
    (world / "cli.py").write_text(NO_TEMPORARY)
    done = shell(world, command.replace("rk ", f'"{sys.executable}" cli.py '))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_no_folder_for_temporary_files_where_one_is_needed(world: Path) -> None:
    (world / "cli.py").write_text(NO_TEMPORARY)
    done = shell(world, f'"{sys.executable}" cli.py predict m.safetensors - --backend torch < /dev/null')
    said = (
        b"resnetkit predict: no folder for temporary files can be written; set TMPDIR to a folder that can be written\n"
    )
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.slow
def test_a_predictor_needs_no_home(world: Path) -> None:
    """The same numbers without a cache folder, and nothing is sent or printed."""
    normal = json.loads(shell(world, "rk predict m.safetensors d --json").stdout)
    done = shell(world, "unset XDG_CACHE_HOME RESNETKIT_CACHE; HOME=/dev/null rk predict m.safetensors d --json")
    assert done.returncode == 0, done.stderr
    assert b"elemetry" not in done.stderr
    assert b"client ID" not in done.stderr
    for one, other in zip(normal, json.loads(done.stdout), strict=True):
        assert one["path"] == other["path"]
        assert one["predictions"][0]["probability"] == pytest.approx(other["predictions"][0]["probability"], abs=1e-3)


def test_openvino_is_imported_without_what_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "openvino_telemetry", raising=False)
    with unreported(), pytest.raises(ImportError):
        import openvino_telemetry  # pyrefly: ignore[missing-import]  # noqa: F401
    assert "openvino_telemetry" not in sys.modules
    own = object()
    monkeypatch.setitem(sys.modules, "openvino_telemetry", own)
    with unreported():
        pass
    assert sys.modules["openvino_telemetry"] is own


SILENT = """
import os, sys, pathlib
sent = []
sys.addaudithook(lambda event, args: sent.append((event, args)) if event in ("socket.connect", "socket.getaddrinfo",
    "socket.sendto", "urllib.Request", "http.client.connect") else None)
import numpy as np
from resnetkit import Predictor
from resnetkit.infer.choice import Choice
picture = np.zeros((40, 40, 3), np.uint8)
Predictor(sys.argv[1], backend=sys.argv[2])(picture)
if sys.argv[2] == "openvino":
    from resnetkit.infer.quantizing import quantize
    with quantize._quiet():
        import nncf
assert "openvino_telemetry" not in sys.modules
import time; time.sleep(1)  # they send from another thread
assert "ORT_DISABLE_TELEMETRY" not in os.environ
print(sent, [str(path) for path in pathlib.Path.home().rglob("*") if path.is_file()])
"""


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["torch", "openvino", "onnxruntime"])
def test_no_library_phones_home(world: Path, backend: str) -> None:
    if backend != "torch":
        pytest.importorskip(backend)
    home = world / "home"
    home.mkdir()
    # These say that it is a build machine, where some report nothing anyway.
    variables = dict.fromkeys(("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"), "")
    variables |= {"HOME": str(home), "RESNETKIT_CACHE": str(world / "cache")}
    env = {k: v for k, v in (os.environ | variables).items() if v}
    argv = [sys.executable, "-c", SILENT, str(world / "m.safetensors"), backend]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.stdout == "[] []\n", done.stderr
    assert "elemetry" not in done.stderr

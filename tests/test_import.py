"""The modules that `import resnetkit` imports, and those that it must not import."""

import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resnetkit

# Slow to import, or not needed before a verb runs.
HEAVY = ("torch", "torchvision", "numpy", "PIL", "jsonargparse", "matplotlib", "rich", "yaml", "safetensors")


def heavy_after(statement: str) -> set[str]:
    """Return the modules of HEAVY that a new interpreter has imported after `statement`."""
    code = f"{statement}\nimport sys\nprint('imported', *(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    marker, *found = done.stdout.splitlines()[-1].split()
    assert marker == "imported"
    return set(found)


def test_import_is_light() -> None:
    assert heavy_after("import resnetkit") == set()


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["trian"], ["--jsn"], []])
def test_help_and_wrong_verbs_are_light(argv: list[str]) -> None:
    quiet = "import contextlib, io\nfrom resnetkit.cli import main\n"
    call = f"with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()): main({argv!r})"
    assert heavy_after(quiet + call) == set()


@pytest.mark.parametrize(
    "verb", ["models", "recipes", "train", "evaluate", "predict", "export", "tune", "serve", "doctor"]
)
def test_help_of_a_verb_needs_no_torch(verb: str) -> None:
    call = f"from resnetkit.cli import main\nassert main([{verb!r}, '--help']) == 0"
    assert not heavy_after(call) & {"torch", "torchvision", "matplotlib"}


def test_recipes_need_no_torch() -> None:
    call = "from resnetkit.cli import main\nassert main(['recipes']) == 0\nassert main(['recipes', 'folder']) == 0"
    assert not heavy_after(call) & {"torch", "numpy"}


def test_the_command_line_sets_nothing_where_it_is_imported() -> None:
    """The import does not change a program's signals, environment and settings of jsonargparse."""
    code = (
        "import os, pkgutil, signal\n"
        "import jsonargparse, jsonargparse._optionals as settings, torch, PIL.Image\n"
        "from importlib import import_module\n"
        "def state():\n"
        "    signals = [signal.getsignal(number) for number in signal.valid_signals()]\n"
        "    threads = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.get_rng_state().tolist()\n"
        "    docstrings = dict(settings._docstring_parse_options)\n"
        "    return signals, dict(os.environ), threads, docstrings, PIL.Image.MAX_IMAGE_PIXELS\n"
        "before = state()\n"
        "import resnetkit.cli, resnetkit.commands, resnetkit.train.run\n"
        "for module in pkgutil.iter_modules(resnetkit.commands.__path__, 'resnetkit.commands.'):\n"
        "    import_module(module.name)\n"
        "names = ('signals', 'environment', 'torch', 'jsonargparse', 'Pillow')\n"
        "print([name for name, was, now in zip(names, before, state()) if was != now])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_models_needs_neither_torch_nor_numpy() -> None:
    assert not heavy_after("from resnetkit.cli import main\nassert main(['models']) == 0") & {"torch", "numpy"}


@pytest.mark.parametrize(
    "module",
    [
        "models.spec",
        "train.recipe",
        "data.transforms",
        "data.samples",
        "data.dataset",
        "modelfile",
        "location",
        "models.shipped",
        "machine",
        "errors",
    ],
)
def test_data_without_torch(module: str) -> None:
    assert not heavy_after(f"import resnetkit.{module}") & {"torch", "torchvision"}


def test_no_module_imports_the_packages_root() -> None:
    """No module imports the package's root, because the root imports modules: this would be a circle."""
    folder = Path(resnetkit.__file__).parent
    of_root = re.compile(r"^ *(from resnetkit import|import resnetkit$)", re.MULTILINE)
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*.py") if of_root.search(path.read_text())]
    assert found == []


def test_every_public_name_is_there() -> None:
    assert set(resnetkit.__all__) <= set(dir(resnetkit))
    for name in resnetkit.__all__:
        assert callable(getattr(resnetkit, name)) or name in ("SPECS", "RECIPES")


def test_public_names_are_the_ones_in_their_modules() -> None:
    from resnetkit.models.resnet import build
    from resnetkit.models.spec import SPECS
    from resnetkit.train.recipe import Recipe

    assert (resnetkit.build, resnetkit.SPECS, resnetkit.Recipe) == (build, SPECS, Recipe)


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'resnet19'"):
        _ = resnetkit.resnet19
    assert not hasattr(resnetkit, "__wrapped__")


@pytest.mark.parametrize("first", ["", "import resnetkit.train.recipe", "from resnetkit.train.run import resume"])
def test_train_can_be_called_whatever_was_imported_before(first: str) -> None:
    code = f"{first}\nimport resnetkit\nassert callable(resnetkit.train), type(resnetkit.train)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_is_the_verb_and_the_package(tmp_path: object) -> None:
    with pytest.raises(resnetkit.DataError, match="nowhere"):
        resnetkit.train(resnetkit.Recipe(), "nowhere", out=f"{tmp_path}/run", quiet=True)


# What a library could change for all of the process that imports it.
STATE = """
import importlib, json, logging, os, signal, sys, threading, warnings

def described(value):
    return value.pattern if hasattr(value, "pattern") else getattr(value, "__name__", repr(value))

def state():
    import PIL.Image, PIL.ImageFile, jsonargparse, matplotlib, numpy, torch

    loggers = {"": logging.root, **logging.root.manager.loggerDict}
    return {
        "warnings": [[described(part) for part in entry] for entry in warnings.filters],
        "environment": dict(os.environ),
        "pillow": [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES, sorted(PIL.Image.OPEN)],
        "logging": {
            name: [repr(logger.handlers), logger.level, logger.propagate]
            for name, logger in sorted(loggers.items())
            if isinstance(logger, logging.Logger) and (logger.handlers or logger.level)
        },
        "signals": [repr(signal.getsignal(number)) for number in sorted(signal.valid_signals())],
        "threads": [threading.active_count(), torch.get_num_threads(), torch.get_num_interop_threads()],
        "torch": [
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.conv.fp32_precision,
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.cudnn.benchmark,
            torch.multiprocessing.get_sharing_strategy(),
        ],
        "python": [sys.path, sys.getrecursionlimit(), repr(sys.excepthook), sys.stdout.errors],
        "jsonargparse": [jsonargparse._common.parsing_settings, jsonargparse._optionals._docstring_parse_options],
        "matplotlib": {name: repr(value) for name, value in matplotlib.rcParams.items()},
        "numpy": [numpy.geterr(), repr(numpy.get_printoptions())],
    }

for name in json.loads(sys.argv[1]):
    try:
        importlib.import_module(name)
    except Exception:
        if name.startswith("resnetkit"):
            raise
print(json.dumps([name for name in sys.modules if not name.startswith(("resnetkit", "__main__"))]))
print(json.dumps(state(), default=repr))
"""


@pytest.mark.slow
def test_importing_any_module_changes_nothing_of_the_process() -> None:
    """Importing our modules changes no more than importing the libraries that they use."""

    def after(names: list[str]) -> tuple[list[str], dict[str, object]]:
        argv = [sys.executable, "-c", STATE, json.dumps(names)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        loaded, state = done.stdout.splitlines()
        return json.loads(loaded), json.loads(state)

    ours = [module.name for module in pkgutil.walk_packages(resnetkit.__path__, "resnetkit.")]
    ours.remove("resnetkit.__main__")
    assert len(ours) > 80
    others, found = after(ours)
    _, expected = after(others)
    for what in expected:
        assert found[what] == expected[what], what

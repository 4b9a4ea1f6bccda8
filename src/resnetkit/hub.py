"""Model files on the Hugging Face Hub, or in a folder with the layout of a repository, with a model card.

The card is written from the file's header. It contains only known facts: no licence that was not given, no number that
was not measured.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from resnetkit.data.published.download import offline
from resnetkit.data.published.huggingface import HUB, WEIGHTS_FILE, check_repository, client, first_line
from resnetkit.errors import DataError, ModelFileError
from resnetkit.files import whole_file, write_whole
from resnetkit.modelfile import Header, Model, inspect, load, model_file
from resnetkit.models.spec import SPECS

CARD = "README.md"
CLASSES_SHOWN = 100


def to_hub(
    model: str | Path, where: str | Path, *, licence: str = "", private: bool = False, replace_files: bool = False
) -> str:
    """Publish a model file, or the best model of a run folder, with a model card. Return its address.

    `where` is hf:OWNER/NAME, a repository on the Hub, which is created if it does not exist (needs the extra `hub`; log
    in with `hf auth login`); or a folder. Both get the files model.safetensors and README.md. In a folder,
    `replace_files` replaces existing files with these names; on the Hub, earlier files stay in the history. `private`
    makes a new repository private. `licence` is an identifier such as apache-2.0; if it is empty, the card names no
    licence.

    Raises ModelFileError for a model file that can't be read or a folder that can't be written, UsageError without the
    extra, DataError if the Hub refuses the files or can't be reached.
    """
    path = model_file(model)
    header = inspect(path)
    if not str(where).startswith(HUB):
        _write(path, header, Path(where), address=f"{where}/{WEIGHTS_FILE}", licence=licence, over=replace_files)
        return str(where)
    repository = str(where).removeprefix(HUB)
    check_repository(repository)
    if offline():
        raise DataError(f"RESNETKIT_OFFLINE is set: nothing can be sent to {where}; give a folder, and upload it later")
    hub = client()
    with TemporaryDirectory() as folder:
        _write(path, header, Path(folder), address=str(where), licence=licence, over=True)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"{network_name(header)} by resnetkit"
            )
        except Exception as error:  # errors of the connection have no common base class
            raise DataError(
                f"the Hub did not accept {repository} ({first_line(error)}); log in with `hf auth login`; OWNER must "
                f"be your user name or an organisation of yours"
            ) from error
    return hub.constants.ENDPOINT + "/" + repository


def from_hub(where: str | Path) -> Model:
    """Load a model that `to_hub` wrote: hf:OWNER/NAME from the Hub, cached (needs the extra `hub`), or a folder.

    hf:OWNER/NAME may also contain weights of timm. Raises the same errors as `resnetkit.load`.
    """
    if str(where).startswith(HUB):
        return load(where)
    file = Path(where) / WEIGHTS_FILE
    if not file.is_file():
        raise ModelFileError(f"{file} does not exist; give a folder that to_hub wrote, or {HUB}OWNER/NAME for the Hub")
    return load(file)


def network_name(header: Header) -> str:
    """Return the network's name in SPECS, for any number of classes; else a description with its number of layers."""
    spec = header.spec
    names = [name for name, row in SPECS.items() if replace(row, classes=spec.classes) == spec]
    return names[0] if names else f"residual network of {spec.layers} layers"


def card(header: Header, *, address: str, licence: str = "") -> str:
    """Return the model card of a header, as Markdown with the front matter that the Hub reads.

    `address` is the model's name for `resnetkit predict`.
    """
    spec, preprocess, name = header.spec, header.preprocess, network_name(header)
    front = {
        "library_name": "resnetkit",
        "pipeline_tag": "image-classification",
        "tags": ["resnetkit", "resnet", "image-classification"],
    } | ({"license": licence} if licence else {})
    trained_on = header.data.get("name")
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(),
        "---",
        "",
        f"# {name}{f' on {_plain(trained_on)}' if trained_on else ''}",
        "",
        f"A {name} ({spec.layers} layers, {spec.parameters:,} parameters, {spec.block} blocks, shortcuts "
        f"{spec.shortcut}) for {spec.classes} classes. The file contains the network, its preprocessing and its class "
        f"names; nothing else is needed to use it.",
        "",
        "```shell",
        "pip install 'resnetkit[hub]'" if address.startswith(HUB) else "pip install resnetkit",
        f"resnetkit predict {address} picture.jpg",
        "```",
        "",
        "```python",
        "import resnetkit as rk",
        "",
        f'rk.Predictor("{address}")("picture.jpg", top=3)',
        "```",
        "",
        "## Input",
        "",
        f"{preprocess.mode} pictures; {preprocess.geometry}, then (pixel / 255 - mean) / std with mean "
        f"{_numbers(preprocess.mean, preprocess.channels)} and std {_numbers(preprocess.std, preprocess.channels)}.",
        "",
        "## Classes",
        "",
        _classes(header.classes),
    ]
    data = {name: value for name, value in header.data.items() if name != "pictures"}
    blocks = {"Measured": header.metrics, "Data": data, "Training": header.recipe, "Origin": header.origin}
    for title, values in blocks.items():
        if values:
            lines += ["", f"## {title}", "", *_block(values)]
    return "\n".join([*lines, "", f"Written by resnetkit {header.version} from the header of `{WEIGHTS_FILE}`.", ""])


def _write(path: Path, header: Header, folder: Path, *, address: str, licence: str, over: bool) -> None:
    files = [folder / name for name in (WEIGHTS_FILE, CARD)]
    if there := [str(file) for file in files if file.exists() and not over]:
        raise ModelFileError(f"{' and '.join(there)} exist already; give another folder, or `replace_files`")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, whole_file(files[0]) as copy:
            shutil.copyfileobj(source, copy)
        write_whole(files[1], card(header, address=address, licence=licence))
    except OSError as error:
        raise ModelFileError(f"{folder} could not be written: {error.strerror or error}") from error


def _classes(names: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{_plain(name)}`" for name in names[:CLASSES_SHOWN])
    return shown + (f" and {len(names) - CLASSES_SHOWN:,} more, in the file" if len(names) > CLASSES_SHOWN else "")


def _numbers(values: tuple[float, ...], channels: int) -> str:
    return ", ".join(f"{value:g}" for value in values) if len(values) == channels else "of every pixel (in the file)"


def _block(values: Mapping[str, Any]) -> list[str]:
    # Through JSON, as in the header, so that tuples become lists.
    return [
        "```yaml",
        yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, allow_unicode=True).strip(),
        "```",
    ]


def _plain(text: object) -> str:
    """Return a name on one line of Markdown, without backticks."""
    return " ".join(str(text).replace("`", "'").split())

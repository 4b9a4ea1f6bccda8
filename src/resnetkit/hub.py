"""A model file on the Hugging Face Hub, or in a folder laid out like a repository there, with a model card.

The card is written from the file's header, so it says what the file says, and nothing that nobody knows: no licence
that was not given, no number that was not measured.
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
    """Publish a model file, or the best one of a run folder, with a card; return the address of what was written.

    `where` is hf:OWNER/NAME, a repository that is made unless it is there (extra `hub`; log in with `hf auth login`),
    or a folder that gets the same files: model.safetensors and README.md. In a folder, `replace_files` writes over
    files of these names; on the Hub, the earlier ones stay in the history. `licence` is an identifier such as
    apache-2.0; empty says nothing of it.

    Raises ModelFileError for a model file that can't be read or a folder that can't be written, UsageError without the
    extra, DataError where the Hub refuses or can't be reached.
    """
    path = model_file(model)
    header = inspect(path)
    if not str(where).startswith(HUB):
        _write(path, header, Path(where), address=f"{where}/{WEIGHTS_FILE}", licence=licence, over=replace_files)
        return str(where)
    repository = str(where).removeprefix(HUB)
    check_repository(repository)
    if offline():
        raise DataError(
            f"RESNETKIT_OFFLINE is set: nothing can be sent to {where}; give a folder, and upload that later"
        )
    hub = client()
    with TemporaryDirectory() as folder:
        _write(path, header, Path(folder), address=str(where), licence=licence, over=True)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repository, folder_path=folder, commit_message=f"{network_name(header)} by resnetkit"
            )
        except Exception as error:  # its transport's errors have no base of the client's own
            raise DataError(
                f"the Hub did not take {repository} ({first_line(error)}); `hf auth login` says who you are, and OWNER "
                f"must be you or an organisation of yours"
            ) from error
    return hub.constants.ENDPOINT + "/" + repository


def from_hub(where: str | Path) -> Model:
    """Load what `to_hub` wrote: hf:OWNER/NAME from the Hub, cached (extra `hub`), or a folder of the same layout.

    hf:OWNER/NAME may also hold weights of timm's. Raises as `resnetkit.load` does.
    """
    if str(where).startswith(HUB):
        return load(where)
    file = Path(where) / WEIGHTS_FILE
    if not file.is_file():
        raise ModelFileError(f"{file} does not exist; give a folder that to_hub wrote, or {HUB}OWNER/NAME for the Hub")
    return load(file)


def network_name(header: Header) -> str:
    """The row of SPECS that the network is, whatever its number of classes; else its number of layers."""
    spec = header.spec
    names = [name for name, row in SPECS.items() if replace(row, classes=spec.classes) == spec]
    return names[0] if names else f"residual network of {spec.layers} layers"


def card(header: Header, *, address: str, licence: str = "") -> str:
    """The model card of a header, as Markdown with the front matter that the Hub reads.

    `address` is what `resnetkit predict` is given to use the model.
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
        f"{spec.shortcut}) that tells {spec.classes} classes apart. The file holds the network, its preprocessing and "
        f"its class names; nothing else is needed to use it.",
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
        f"{preprocess.mode} pictures; shorter side to {preprocess.shorter_side} pixels ({preprocess.interpolation}), "
        f"the centre of {preprocess.size} x {preprocess.size}, then (pixel / 255 - mean) / std with mean "
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
    # By way of JSON, as in the header: no tuples.
    return [
        "```yaml",
        yaml.safe_dump(json.loads(json.dumps(values)), sort_keys=False, allow_unicode=True).strip(),
        "```",
    ]


def _plain(text: object) -> str:
    """A name on one line of Markdown, without code marks."""
    return " ".join(str(text).replace("`", "'").split())

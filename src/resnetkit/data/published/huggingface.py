"""Files of a repository on the Hugging Face Hub, through its own client (extra `hub`): it caches, locks and resumes."""

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

from resnetkit.data.published.download import digest, offline
from resnetkit.errors import DataError, UsageError
from resnetkit.files import cache_folder

HUB = "hf:"
"""Begins the name of a repository: hf:OWNER/NAME."""
WEIGHTS_FILE = "model.safetensors"
"""What a repository's weights are called, timm's and ours alike."""
OWNER_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def client() -> ModuleType:
    """Import the Hub's client. Raises UsageError naming the extra where it is not installed."""
    try:
        return import_module("huggingface_hub")
    except ImportError:
        raise UsageError("the Hugging Face Hub needs its client: pip install 'resnetkit[hub]'") from None


def check_repository(repository: str) -> None:
    """Raise UsageError for what is no OWNER/NAME."""
    if not OWNER_NAME.fullmatch(repository):
        raise UsageError(f'"{repository}" is no repository of the Hub; write OWNER/NAME, such as timm/resnet50.a1_in1k')


def fetch_from_hub(repository: str, name: str) -> Path:
    """Return the file `name` of `repository`: from our cache folder's hub/, the Hub's cache, or downloaded into that.

    A file in `<cache folder>/hub/OWNER/NAME/` is used as it is. Any other is checked against the SHA-256 that the Hub
    gives for large files. `RESNETKIT_OFFLINE` and the client's own `HF_HUB_OFFLINE` are respected.

    Raises UsageError without the extra `hub`; DataError, with the place to put the file, if it can't be fetched.
    """
    check_repository(repository)
    own = cache_folder() / "hub" / repository / name
    if own.is_file():
        return own
    hub = client()
    try:
        path = Path(hub.hf_hub_download(repository, name, local_files_only=offline()))
    except Exception as error:  # its transport's errors have no base of the client's own
        forbidden = offline() or hub.constants.HF_HUB_OFFLINE
        reason = "no network is allowed, and it is not in the cache" if forbidden else first_line(error)
        raise DataError(
            f"can't get {name} of {repository} from the Hub ({reason}); get it elsewhere and put it at {own}"
        ) from error
    whole = path.resolve()  # the client's cache calls a large file by its SHA-256
    if re.fullmatch("[0-9a-f]{64}", whole.name) and digest(whole, "sha256") != whole.name:
        whole.unlink()
        raise DataError(f"{name} of {repository} came with other bytes than the Hub says; thrown away, try again")
    return path


def first_line(error: Exception) -> str:
    """The first line of an error of the client, or the error's name where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

"""Fetch files from the Hugging Face Hub with the Hub's own client (extra `hub`), which caches and resumes downloads."""

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType

from resnetkit.data.published.download import digest, offline
from resnetkit.errors import DataError, UsageError
from resnetkit.files import cache_folder

HUB = "hf:"
"""The beginning of a model's name that means a repository of the Hub: hf:OWNER/NAME."""
WEIGHTS_FILE = "model.safetensors"
"""Name of the weights in a repository, of timm and of this package."""
OWNER_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def client() -> ModuleType:
    """Import the Hub's client and return it. Raises UsageError with the install command if it is not installed."""
    try:
        return import_module("huggingface_hub")
    except ImportError:
        raise UsageError("the Hugging Face Hub needs its client: pip install 'resnetkit[hub]'") from None


def check_repository(repository: str) -> None:
    """Raise UsageError if `repository` is not of the form OWNER/NAME."""
    if not OWNER_NAME.fullmatch(repository):
        raise UsageError(f'"{repository}" is no repository of the Hub; write OWNER/NAME, such as timm/resnet50.a1_in1k')


def fetch_from_hub(repository: str, name: str) -> Path:
    """Return the path of the file `name` of `repository`. It is downloaded into the Hub's cache unless it is there.

    A file that somebody put into `<cache folder>/hub/OWNER/NAME/` is used first, without a check. Other large files are
    checked by the SHA-256 that the Hub publishes. With `RESNETKIT_OFFLINE` or the client's own `HF_HUB_OFFLINE`,
    nothing is downloaded.

    Raises UsageError without the extra `hub`; DataError, with the path to put the file at, if it can't be fetched.
    """
    check_repository(repository)
    own = cache_folder() / "hub" / repository / name
    if own.is_file():
        return own
    hub = client()
    try:
        path = Path(hub.hf_hub_download(repository, name, local_files_only=offline()))
    except Exception as error:  # the errors of the client's transport have no common base class
        forbidden = offline() or hub.constants.HF_HUB_OFFLINE
        reason = "no network is allowed, and it is not in the cache" if forbidden else first_line(error)
        raise DataError(
            f"can't get {name} of {repository} from the Hub ({reason}); get it elsewhere and put it at {own}"
        ) from error
    whole = path.resolve()  # in the client's cache, the name of a large file is its SHA-256
    if re.fullmatch("[0-9a-f]{64}", whole.name) and digest(whole, "sha256") != whole.name:
        whole.unlink()
        raise DataError(
            f"{name} of {repository} came with other bytes than the Hub states; they were deleted, try again"
        )
    return path


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if the message is empty."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)

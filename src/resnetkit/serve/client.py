"""Ask a server of `resnetkit serve`, as a client in another place does. The standard library only, no torch."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from resnetkit.errors import DataError, UsageError

MOST_TRIES = 20
"""Of a request that a busy server refuses."""
LONGEST_PAUSE = 30.0
"""Seconds between two tries."""


@dataclass(frozen=True)
class Client:
    """A server at an address. Raises UsageError for an address of another kind."""

    url: str
    """Such as http://127.0.0.1:8000."""
    key: str | None = None
    """The key that the server asks for."""
    timeout: float = 120.0
    """Seconds for one request."""

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UsageError(f"`url` is {self.url}; give the address of a server, such as http://127.0.0.1:8000")
        if self.key is not None and not self.key.isascii():
            raise UsageError("the key of the server has letters that are not ASCII")

    def models(self) -> list[dict[str, Any]]:
        """Return the cards of the models that are served, the default one first; see serve.card.

        Raises DataError if the server can't be reached, or answers with an error.
        """
        found = self._ask("models").get("models")
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise DataError(f"{self.url} is no server of resnetkit: its /models names no models")
        return found

    def predict(self, picture: bytes, *, model: str, top: int, reject: bool = False) -> dict[str, Any]:
        """Return the answer for the content of a picture file, {"predictions": [...], "rejected": ...} or {"error"}.

        A busy server is asked again when it says. Raises DataError if the server can't be reached, or answers with an
        error.
        """
        return self._result({"model": model, "top": str(top)} | ({"reject": "true"} if reject else {}), picture)

    def find(self, picture: bytes, *, model: str) -> dict[str, Any]:
        """Return a detector's answer, {"width", "height", "detections": [...]} or {"error"}: see `predict`."""
        return self._result({"model": model}, picture)

    def _result(self, values: Mapping[str, str], picture: bytes) -> dict[str, Any]:
        found = self._ask("predict", values, picture).get("results")
        if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], dict):
            raise DataError(f"{self.url} is no server of resnetkit: its /predict gave no result")
        return found[0]

    def _ask(self, path: str, values: Mapping[str, str] | None = None, body: bytes | None = None) -> dict[str, Any]:
        address = f"{self.url.rstrip('/')}/{path}" + (f"?{urlencode(values)}" if values else "")
        headers = {"Accept": "application/json"}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
        if self.key is not None:
            headers["X-API-Key"] = self.key
        for tries in range(1, MOST_TRIES + 1):
            try:
                with urlopen(Request(address, body, headers), timeout=self.timeout) as answer:
                    return self._read(answer.read())
            except HTTPError as error:
                content = self._content_of(error)
                if error.code == 422 and body is not None:  # the picture can't be read, and the result says why
                    return self._read(content)
                if error.code == 503 and tries < MOST_TRIES:
                    time.sleep(_seconds(error.headers.get("Retry-After")))
                    continue
                raise DataError(self._refusal(error.code, content)) from error
            except (URLError, HTTPException, OSError, ValueError) as error:
                raise self._not_asked(error) from error
        raise AssertionError("the last try returns or raises")

    def _content_of(self, error: HTTPError) -> bytes:
        try:
            with error:
                return error.read()
        except (HTTPException, OSError) as broken:
            raise self._not_asked(broken) from broken

    def _not_asked(self, error: Exception) -> DataError:
        reason = " ".join(str(getattr(error, "reason", None) or error).split()) or type(error).__name__
        return DataError(f"{self.url} can't be asked ({reason}); start it: resnetkit serve MODEL")

    def _read(self, content: bytes) -> dict[str, Any]:
        try:
            found = json.loads(content)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise DataError(f"{self.url} is no server of resnetkit: its answer is not a JSON object")
        return found

    def _refusal(self, status: int, content: bytes) -> str:
        try:
            said = str(json.loads(content)["error"])
        except (ValueError, KeyError, TypeError):
            said = ""
        if status == 401:
            return f"{self.url} asks for its key; give it in RESNETKIT_API_KEY"
        return f"{self.url} answered with the status {status}{f': {said}' if said else ''}"


def _seconds(retry_after: str | None) -> float:
    try:
        return min(max(float(retry_after or 1), 0.1), LONGEST_PAUSE)
    except ValueError:
        return 1.0

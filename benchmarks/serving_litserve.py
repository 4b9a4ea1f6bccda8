"""The LitServe service of the serving benchmark: see serving_peers.py."""

import os
from pathlib import Path
from typing import Any

import litserve
from fastapi import Request
from PIL import Image

from serving_peers import MODEL, Network


class Api(litserve.LitAPI):
    """Classifies pictures, one at a time."""

    def setup(self, device: str) -> None:
        """Load the network."""
        self.network = Network(Path(os.environ[MODEL]))

    def decode_request(self, request: Request) -> Any:
        """Return the network's input for the picture of a form: for this annotation, LitServe passes the form."""
        form: Any = request
        return self.network.read(Image.open(form["file"].file))

    def predict(self, inputs: Any) -> Any:
        """Return the answer."""
        return self.network.compute([inputs])[0]

    def encode_response(self, output: Any) -> Any:
        """Return the answer as it is sent."""
        return output


class BatchedApi(Api):
    """Classifies pictures in batches."""

    def predict(self, inputs: Any) -> Any:
        """Return the answers."""
        return self.network.compute(list(inputs))

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Return a batch of inputs."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """Return the answers of a batch."""
        return output

"""The BentoML service of the serving benchmark: see serving_peers.py."""

import os
from pathlib import Path
from typing import Any

import bentoml
from PIL.Image import Image

from serving_peers import BATCH, MODEL, Network


@bentoml.service(traffic={"timeout": 60})
class Service:
    """Classifies pictures."""

    def __init__(self) -> None:
        self.network = Network(Path(os.environ[MODEL]))

    @bentoml.api(batchable=True, max_batch_size=BATCH, route="/predict")
    def predict(self, file: list[Image]) -> list[dict[str, Any]]:
        """Return the answer for each picture."""
        return self.network.compute([self.network.read(picture) for picture in file])

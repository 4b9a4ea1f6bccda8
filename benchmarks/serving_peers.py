"""The peers of the serving benchmark: torchvision's eager network behind a form with a picture, as people write it.

    python serving_peers.py fastapi|fastapi-threads|litserve|litserve-batched|bentoml MODEL PORT

- fastapi: one request, one forward, in an `async def` handler; fastapi-threads: the same in a `def` handler, which
  FastAPI runs in a thread, so several forwards run at once;
- litserve: LitServe with its defaults, one request at a time; litserve-batched: with batches of up to 8;
- bentoml: BentoML with adaptive batching, up to 8.
All of them take a form with a picture at /predict, and answer with the five most probable classes.
"""

import io
import os
import sys
from pathlib import Path
from typing import Any

from PIL import Image

BATCH = 8
MODEL = "SERVING_MODEL"
"""The variable with the path of the model file, for services that are imported by other processes."""


class Network:
    """Torchvision's network with its usual transforms."""

    def __init__(self, model: Path) -> None:
        import torch

        from networks import eager_network, eager_transform
        from resnetkit import modelfile

        self._torch = torch
        self._net = eager_network(model)
        self._transform = eager_transform(model)
        self._classes = modelfile.inspect(model).classes

    def read(self, picture: Image.Image) -> Any:
        """Return the network's input for a picture."""
        return self._transform(picture.convert("RGB"))

    def compute(self, inputs: list[Any]) -> list[dict[str, Any]]:
        """Return the answer for each input, computed as one batch."""
        with self._torch.inference_mode():
            values, places = self._net(self._torch.stack(inputs)).softmax(dim=1).topk(5)
        return [
            {
                "predictions": [
                    {"label": self._classes[i], "index": i, "probability": value} for value, i in zip(*row, strict=True)
                ]
            }
            for row in zip(values.tolist(), places.tolist(), strict=True)
        ]


def fastapi(model: Path, port: int, *, threads: bool) -> None:
    """Serve by FastAPI."""
    import uvicorn
    from fastapi import FastAPI, UploadFile

    network, app = Network(model), FastAPI()

    if threads:

        @app.post("/predict")
        def predict(file: UploadFile) -> dict[str, Any]:
            return network.compute([network.read(Image.open(file.file))])[0]

    else:

        @app.post("/predict")
        async def predict_here(file: UploadFile) -> dict[str, Any]:
            content = await file.read()
            return network.compute([network.read(Image.open(io.BytesIO(content)))])[0]

    uvicorn.run(app, port=port, log_level="warning")


def litserve(model: Path, port: int, *, batch: int) -> None:
    """Serve by LitServe: its processes import the API from a module."""
    from litserve import LitServer

    from serving_litserve import Api, BatchedApi

    os.environ[MODEL] = str(model)
    api = BatchedApi(max_batch_size=batch, batch_timeout=0.01) if batch > 1 else Api()
    LitServer(api, accelerator="cpu").run(port=port, generate_client_file=False, log_level="warning")


def bentoml(model: Path, port: int) -> None:
    """Serve by BentoML: its own command imports the service from a module."""
    os.environ |= {MODEL: str(model), "BENTOML_DO_NOT_TRACK": "True"}
    os.chdir(Path(__file__).parent)
    command = ["serve", "serving_bentoml:Service", "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *command])


def main() -> None:
    """Serve until the process is killed."""
    name, model, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if name.startswith("fastapi"):
        fastapi(model, port, threads=name == "fastapi-threads")
    elif name.startswith("litserve"):
        litserve(model, port, batch=BATCH if name == "litserve-batched" else 1)
    else:
        bentoml(model, port)


if __name__ == "__main__":
    main()

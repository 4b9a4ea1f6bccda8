"""Pictures with several labels for tests: coloured shapes on grey, each shape a label; some have none."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 230)}
SHARES = {"red": 0.5, "green": 0.4, "blue": 0.25}


def tagged(folder: Path, *, count: int, side: int = 32, seed: int = 0) -> dict[str, frozenset[str]]:
    """Write `count` pictures, t000.png and so on, and return their labels; no two pictures are alike."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    labels: dict[str, frozenset[str]] = {}
    for number in range(count):
        noise = rng.integers(70, 150, (side // 4, side // 4, 3)).astype(np.uint8)
        pixels = np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)).copy()
        own = [name for name, share in SHARES.items() if rng.random() < share]
        for name in own:
            size = int(rng.integers(side // 4, side // 2))
            x, y = rng.integers(0, side - size, 2)
            pixels[y : y + size, x : x + size] = COLOURS[name]
        name = f"t{number:03d}.png"
        Image.fromarray(pixels).save(folder / name)
        labels[name] = frozenset(own)
    return labels


def tag_list(folder: Path, *, count: int, side: int = 32, seed: int = 0) -> Path:
    """Write pictures and tags.csv with the columns path,tags, separated by bars; return the list."""
    labels = tagged(folder, count=count, side=side, seed=seed)
    rows = [f"{name},{'|'.join(sorted(own))}\n" for name, own in labels.items()]
    path = folder / "tags.csv"
    path.write_text("path,tags\n" + "".join(rows))
    return path

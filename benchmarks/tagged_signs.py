"""Make pictures with several labels from photographs with one: up to three hand signs on a picture, each photo once.

    python benchmarks/tagged_signs.py SIGNS OUT [--pictures 700]

SIGNS is a folder of class folders. OUT gets square pictures of 2×2 places, each a photo or grey, and tags.csv with the
columns path,tags. A picture has no photo, one, two or three; so some have no label. The same photos give the same set.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 112
SHARES = (0.1, 0.3, 0.35, 0.25)
"""Shares of the pictures with 0, 1, 2 and 3 photos."""


def main() -> None:
    """Write the pictures and the list."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("signs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pictures", type=int, default=700)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    files = sorted(path for path in given.signs.glob("*/*") if path.is_file())
    waiting = [files[place] for place in rng.permutation(len(files))]
    given.out.mkdir(parents=True)
    rows = ["path,tags"]
    for number in range(given.pictures):
        wanted = min(int(rng.choice(4, p=SHARES)), len(waiting))
        photos, waiting = waiting[:wanted], waiting[wanted:]
        picture = Image.new("RGB", (2 * SIDE, 2 * SIDE), (128, 128, 128))
        for photo, place in zip(photos, rng.permutation(4)[:wanted].tolist(), strict=True):
            with Image.open(photo) as opened:
                picture.paste(opened.convert("RGB").resize((SIDE, SIDE)), (SIDE * (place % 2), SIDE * (place // 2)))
        name = f"{number:04d}.png"
        picture.save(given.out / name)
        rows.append(f"{name},{'|'.join(sorted({f'sign {photo.parent.name}' for photo in photos}))}")
    (given.out / "tags.csv").write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()

"""Small pictures, and annotations of them as tools write them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Voc = tuple[str, float, float, float, float]


def picture(path: Path, *, size: tuple[int, int] = (64, 48), orientation: int = 1, seed: int = 0) -> Path:
    """Write a picture of noise in large squares, which is alike to no other seed's; size as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng([seed, *path.stem.encode()]).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


def voc(path: Path, objects: Sequence[Voc], *, size: tuple[int, int] | None = (64, 48), extra: str = "") -> Path:
    """Write a VOC annotation; `extra` is put before the end of each object."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sized = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    lines = ["<annotation>", f"<filename>{path.stem}.jpg</filename>", sized]
    for name, left, top, right, bottom in objects:
        box = f"<xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax>"
        lines.append(f"<object><name>{name}</name><bndbox>{box}</bndbox>{extra}</object>")
    path.write_text("\n".join([*lines, "</annotation>"]), encoding="utf-8")
    return path


def voc_folder(root: Path, annotations: dict[str, Sequence[Voc]], *, lists: dict[str, str] | None = None) -> Path:
    """Write JPEGImages, Annotations and lists: list -> names with spaces between them."""
    for name, objects in annotations.items():
        picture(root / "JPEGImages" / f"{name}.jpg")
        voc(root / "Annotations" / f"{name}.xml", objects)
    for part, names in (lists or {}).items():
        path = root / "ImageSets" / "Main" / f"{part}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names.split()) + "\n")
    return root


def coco(path: Path, images: Sequence[Any], annotations: Sequence[Any], names: Sequence[str] = ("cat", "dog")) -> Path:
    """Write a COCO file with the categories 1, 2, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    categories = [{"id": number, "name": name, "supercategory": "none"} for number, name in enumerate(names, 1)]
    document = {"info": {}, "images": list(images), "annotations": list(annotations), "categories": categories}
    path.write_text(json.dumps(document))
    return path


def image(number: int, name: str, *, size: tuple[int, int] = (64, 48)) -> dict[str, Any]:
    """Return an entry of COCO's images."""
    return {"id": number, "file_name": name, "width": size[0], "height": size[1]}


def box(number: int, image_id: int, category: int, *values: float, **more: Any) -> dict[str, Any]:
    """Return an entry of COCO's annotations."""
    return {"id": number, "image_id": image_id, "category_id": category, "bbox": list(values), "iscrowd": 0} | more


def yolo(path: Path, *lines: str) -> Path:
    """Write a label file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    return path

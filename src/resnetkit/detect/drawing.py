"""Draw boxes into pictures."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from resnetkit.data.detection.samples import Detections, Objects

COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#f032e6", "#808000", "#000075")
"""Colours of the classes, in turn; white text is readable on each of them."""
TRUTH = "#ffffff"
LEAST_WIDTH = 2  # pixels of a line
LONGEST_NAME = 30  # characters


def draw_boxes(
    pixels: NDArray[np.uint8], found: Detections, classes: Sequence[str], *, truth: Objects | None = None
) -> Image.Image:
    """Return a picture, uint8 (h, w, 3), with a frame, the class and the probability of each detection.

    Frames have the colour of the class. Objects of `truth` get a thin white frame.
    """
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    line = max(LEAST_WIDTH, round(max(picture.size) / 400))
    font = ImageFont.load_default(size=max(11, round(max(picture.size) / 60)))
    if truth is not None:
        for box in truth.boxes.tolist():
            draw.rectangle(box, outline=TRUTH, width=max(1, line // 2))
    # The most probable ones are drawn last, above the others.
    for box, label, score in reversed(list(zip(found.boxes.tolist(), found.labels, found.scores, strict=True))):
        color, text = COLORS[label % len(COLORS)], f"{classes[label][:LONGEST_NAME]} {100 * score:.0f} %"
        draw.rectangle(box, outline=color, width=line)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        height, width = bottom - top + 4, right - left + 4
        x, y = min(box[0], picture.width - width), box[1] - height if box[1] >= height else box[1]
        draw.rectangle((x, y, x + width, y + height), fill=color)
        draw.text((x + 2 - left, y + 2 - top), text, fill="#ffffff", font=font)
    return picture

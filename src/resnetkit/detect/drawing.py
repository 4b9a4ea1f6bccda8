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
    drawing = _Drawing(pixels)
    if truth is not None:
        for box in truth.boxes.tolist():
            drawing.draw.rectangle(box, outline=TRUTH, width=max(1, drawing.line // 2))
    # The most probable ones are drawn last, above the others.
    for box, label, score in reversed(list(zip(found.boxes.tolist(), found.labels, found.scores, strict=True))):
        drawing.frame(box, label, f"{classes[label][:LONGEST_NAME]} {100 * score:.0f} %")
    return drawing.picture


def draw_objects(pixels: NDArray[np.uint8], objects: Objects, classes: Sequence[str]) -> Image.Image:
    """Return a picture, uint8 (h, w, 3), with a frame in the colour of its class and the class of each object."""
    drawing = _Drawing(pixels)
    for box, label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
        drawing.frame(box, label, classes[label][:LONGEST_NAME])
    return drawing.picture


class _Drawing:
    """A picture on which frames with names are drawn; lines and letters are as large as the picture wants."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self.picture = Image.fromarray(pixels)
        self.draw = ImageDraw.Draw(self.picture)
        self.line = max(LEAST_WIDTH, round(max(self.picture.size) / 400))
        self.font = ImageFont.load_default(size=max(11, round(max(self.picture.size) / 60)))

    def frame(self, box: Sequence[float], label: int, text: str) -> None:
        """Draw the frame of a box, and a text in white at its upper left corner."""
        color = COLORS[label % len(COLORS)]
        self.draw.rectangle(tuple(box), outline=color, width=self.line)
        left, top, right, bottom = self.draw.textbbox((0, 0), text, font=self.font)
        height, width = bottom - top + 4, right - left + 4
        x, y = min(box[0], self.picture.width - width), box[1] - height if box[1] >= height else box[1]
        self.draw.rectangle((x, y, x + width, y + height), fill=color)
        self.draw.text((x + 2 - left, y + 2 - top), text, fill="#ffffff", font=self.font)

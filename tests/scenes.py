"""Generated pictures for tests."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def scene(width, height, mode="RGB", seed=0):
    """A picture with edges, gradients and noise."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).filter(ImageFilter.BoxBlur(1))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((width // 8, height // 8, width // 2, height // 2), fill=(230, 30, 60))
    draw.ellipse((width // 3, height // 3, width - 2, height - 2), fill=(20, 180, 90))
    return picture.convert(mode)

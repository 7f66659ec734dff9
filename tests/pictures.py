"""Folders of small pictures, laid out as ImageNet is."""

import numpy as np
from PIL import Image


def picture(number, size):
    """Something with edges, colours and a gradient, so that crops can be distinguished."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def write_pictures(root, num_train, num_val, classes=3):
    """Write train/ and val/; sizes differ, and some training images are grey, CMYK, PNG with a palette or a single pixel."""
    rng = np.random.default_rng(0)
    for split, count in (("train", num_train), ("val", num_val)):
        for number in range(count):
            place = root / split / f"class{number % classes}"
            place.mkdir(parents=True, exist_ok=True)
            image = picture(number, tuple(int(side) for side in rng.integers(40, 200, 2)))
            mode, suffix = {5: ("L", "jpg"), 6: ("CMYK", "jpg"), 7: ("P", "png")}.get(number, ("RGB", "JPEG"))
            image = image.resize((1, 1)) if number == 8 else image
            image.convert(mode).save(place / f"{number:03}.{suffix}")

"""Random resized crops and flips from a counter: sample i of an epoch gets the same draw whatever reads it, and when.

Plain integer arithmetic on values below 2**63, so that Python and numba compute the same: FFCV's decoder runs this very
function, compiled.
"""

import math

__all__ = ["center_crop", "random_resized_crop", "window"]

WORD = 0xFFFFFFFF
TRIES = 10
SCALE, RATIO = (0.08, 1.0), (0.75, 4 / 3)  # the usual training crop: share of the area, width by height


def random_resized_crop(
    key: int, index: int, height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int, bool]:
    """Draw (top, left, height, width) of a crop of an image of `height` x `width` pixels, and whether it is flipped.

    `key` (32 bits) names the epoch of a stream, `index` the sample. The crop's area is uniform in `scale` of the image's, its
    aspect ratio (width / height) log-uniform in `ratio`; after ten tries that do not fit it is the largest central one
    within `ratio` (torchvision's RandomResizedCrop).
    """
    state = key & WORD
    flip, top, left, crop_height, crop_width, found = False, 0, 0, 0, 0, False
    values = [0.0, 0.0, 0.0, 0.0]
    for attempt in range(TRIES):
        for draw in range(4):
            counter = (index * 64 + attempt * 4 + draw) & WORD
            state = key & WORD
            for part in range(2):  # key and counter through the 32-bit finaliser of MurmurHash3, twice
                state = (state ^ counter) if part == 0 else (state + 0x9E3779B9) & WORD
                state ^= state >> 16
                state = ((state & 0xFFFF) * 0x85EBCA6B + ((((state >> 16) * 0x85EBCA6B) & 0xFFFF) << 16)) & WORD
                state ^= state >> 13
                state = ((state & 0xFFFF) * 0xC2B2AE35 + ((((state >> 16) * 0xC2B2AE35) & 0xFFFF) << 16)) & WORD
                state ^= state >> 16
            values[draw] = state / 4294967296.0
        if attempt == 0:
            flip = (state & 1) == 1  # the lowest bit of a draw that sets a corner by its highest
        area = height * width * (scale[0] + values[0] * (scale[1] - scale[0]))
        aspect = math.exp(math.log(ratio[0]) + values[1] * (math.log(ratio[1]) - math.log(ratio[0])))
        crop_width = round(math.sqrt(area * aspect))
        crop_height = round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(values[2] * (height - crop_height + 1))
            left = int(values[3] * (width - crop_width + 1))
            found = True
            break
    if not found:
        crop_width, crop_height = width, height
        if width < ratio[0] * height:
            crop_height = min(height, round(width / ratio[0]))
        elif width > ratio[1] * height:
            crop_width = min(width, round(height * ratio[1]))
        top, left = (height - crop_height) // 2, (width - crop_width) // 2
    return top, left, crop_height, crop_width, flip


def center_crop(height: int, width: int, share: float) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the central square whose side is `share` of the shorter one."""
    side = max(1, int(share * min(height, width)))
    return (height - side) // 2, (width - side) // 2, side, side


def window(key: int | None, index: int, height: int, width: int, share: float) -> tuple[int, int, int, int, bool]:
    """Return (top, left, height, width) and whether it is flipped: drawn by `key`, or the centre where that is None."""
    if key is None:
        return (*center_crop(height, width, share), False)
    return random_resized_crop(key, index, height, width, SCALE, RATIO)

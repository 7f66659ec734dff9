"""Encoded images to pixels: whatever their mode, RGB of 8 bits; what cannot be that is broken, never guessed."""

import io

import numpy as np

__all__ = ["BrokenImage", "decode"]

EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}
SIXTEEN_AS_32 = ("PNG", "PPM")  # formats of which older versions of Pillow read 16 bits into 32
MOST = 65535


class BrokenImage(ValueError):
    """An image that cannot be decoded; the text names it."""


def decode(data: bytes, name: str) -> tuple[np.ndarray, bool]:
    """Return an image's pixels (H, W, 3) uint8, and whether it was something else than RGB before.

    Grey, CMYK, palettes and transparency become RGB, and 16 bits are scaled to 8. Raises BrokenImage for what is cut short or
    no image, and for numbers without a known scale (32 bits, floating point).
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            if mode in EIGHT_BITS:
                return np.asarray(image.convert("RGB")), mode != "RGB"
            grey = np.asarray(image)
            is_16_bits = mode.startswith("I;16") or (mode == "I" and image.format in SIXTEEN_AS_32)
            if not is_16_bits or grey.ndim != 2 or (grey.size and not 0 <= grey.min() <= grey.max() <= MOST):
                raise BrokenImage(f"{name}: pixels of mode {mode}, whose scale is not known: save it with 8 or 16 bits")
            pixels = np.rint(grey.astype(np.float64) * (255 / MOST)).astype(np.uint8)
            return np.repeat(pixels[:, :, None], 3, axis=2), True
    except BrokenImage:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BrokenImage(f"{name}: {error}") from error

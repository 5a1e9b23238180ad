# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Prototypes as a picture: which explains which patch, how often each is used, what is left over."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.pictures.strip import INK, PAPER, heat_panel, lay_out, panel_image, place_mask

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#7f7f7f")
"""Okabe and Ito's, which most people can tell apart; of more prototypes they come again."""
OPACITY = 0.55


def draw_prototypes(
    image: Image.Image | np.ndarray,
    nearest: np.ndarray,
    left: np.ndarray,
    shares: Sequence[float],
    *,
    crop_box: CropBox = WHOLE_IMAGE,
    name: str = "",
    height: int = 320,
) -> Image.Image:
    """Draw the image, its patches in the colours of their prototypes, and what is left over.

    Args:
        image: The whole image.
        nearest: Number of the prototype of each patch of the crop ``(h, w)``.
        left: Distance to it ``(h, w)``; the colours span its range.
        shares: Share of the patches of each prototype.
        crop_box: The part of the image that the patches cover.
        name: What the image is called.
        height: Height of a panel in pixels.
    """
    picture = panel_image(image, height)
    plain = np.asarray(picture)
    coloured = plain.astype(np.float32)
    grey = coloured.mean(axis=2, keepdims=True)
    for number in range(len(shares)):
        where = place_mask(nearest == number, crop_box, picture.size)[..., None]
        colour = np.array(Image.new("RGB", (1, 1), COLOURS[number % len(COLOURS)]))[0, 0]
        coloured = np.where(where, (1 - OPACITY) * grey + OPACITY * colour, coloured)
    low, high = float(left.min()), float(left.max())
    span = (low, max(high, low + 1e-6))
    panels = {
        "image": plain,
        "nearest prototype": coloured.round().astype(np.uint8),
        "distance to it: what is left over": heat_panel(plain, left, crop_box, span),
    }
    return _with_legend(lay_out(panels, "", INK, name, span, height), shares, height)


def _with_legend(strip: Image.Image, shares: Sequence[float], height: int) -> Image.Image:
    """Put the share of each prototype below a strip."""
    size = max(11, height // 20)
    font, line = ImageFont.load_default(size), 2 * size
    sheet = Image.new("RGB", (strip.width, strip.height + 2 * line), PAPER)
    sheet.paste(strip)
    top = strip.height
    draw, left = ImageDraw.Draw(sheet), size
    draw.text((left, top + line // 2), "nearest prototype, share of the patches:", INK, font, anchor="lm")
    for number, share in enumerate(shares):
        colour, text = COLOURS[number % len(COLOURS)], f"{number + 1}: {share:.0%}"
        middle = top + line + line // 2
        draw.rectangle((left, middle - size // 2, left + size, middle + size // 2), fill=colour)
        draw.text((left + 1.4 * size, middle), text, INK, font, anchor="lm")
        left += round(2.4 * size + font.getlength(text))
    return sheet

# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Many pictures on one sheet."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from anomalib_inp.pictures.strip import INK, LINE, PAPER


def gallery(strips: Sequence[Image.Image], columns: int = 1, title: str | None = None) -> Image.Image:
    """Put result strips on one sheet.

    Args:
        strips: Pictures from ``draw_result``, row by row; they may differ in size.
        columns: Strips beside each other.
        title: Header of the sheet.

    Returns:
        The sheet, in RGB.

    Raises:
        ValueError: There is no strip, or ``columns`` is not positive.
    """
    if not strips or columns < 1:
        msg = f"A gallery needs at least one strip and one column, got {len(strips)} strips and {columns} columns."
        raise ValueError(msg)
    gap = 2
    rows = [strips[start : start + columns] for start in range(0, len(strips), columns)]
    widths = [max(strip.width for strip in strips[column::columns]) for column in range(len(rows[0]))]
    heights = [max(strip.height for strip in row) for row in rows]
    size = (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1))

    sheet = Image.new("RGB", size, LINE)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for column, width in enumerate(widths):
            sheet.paste(PAPER, (left, top, left + width, top + height))
            if column < len(row):
                sheet.paste(row[column], (left, top))
            left += width + gap
        top += height + gap
    if title is None:
        return sheet

    font_size = min(28, max(14, sheet.width // 45))
    font = ImageFont.load_default(font_size)
    header = Image.new("RGB", (round(font.getlength(title)) + font_size, 2 * font_size), PAPER)
    ImageDraw.Draw(header).text((font_size // 2, font_size), title, INK, font, anchor="lm")
    return gallery([header, sheet])

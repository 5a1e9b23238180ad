# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures of results that line up with the image.

The anomaly map covers the part of the image that the model inspects. These pictures put it back where it came from and
keep the image's aspect ratio; anomalib's own ``ImageVisualizer`` stretches image and map to one square.
"""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from anomalib_inp.frame import WHOLE_IMAGE, CropBox
from anomalib_inp.images import to_rgb

PAPER, LINE, INK, _FAINT = (255, 255, 255), (208, 212, 218), (32, 36, 42), (104, 112, 122)
_TRUTH, _FOUND, _FINE, _WRONG = (0, 214, 143), (235, 32, 38), (0, 128, 72), (176, 92, 0)
# matplotlib's inferno from 15 to 92 %: without its black and near-white ends it stands out from dark and from bright
# parts alike.
_HEAT = np.frombuffer(
    bytes.fromhex(
        "2b0b57360961410a674b0c6b550f6d5f136e68166e721a6e7c1d6d86216b8f2468992865a32c61ad305db63458bf3952c83e4c"
        "d04545d84c3edf5337e55c30eb6528f06e21f47919f78311f98e09fb9906fca50afcb115fbbd22f9c931f6d542f4e156"
    ),
    dtype=np.uint8,
).reshape(-1, 3)
# A line-scan image of 10:1 would otherwise make a strip that is 40 panel heights wide.
_WIDEST_PANEL = 3
_CLOSER = 4


def draw_result(
    image: Image.Image | np.ndarray,
    anomaly_map: np.ndarray,
    *,
    pred_mask: np.ndarray | None = None,
    gt_mask: np.ndarray | None = None,
    crop_box: CropBox = WHOLE_IMAGE,
    places: np.ndarray | None = None,
    score: float | None = None,
    raw_score: float | None = None,
    anomalous: bool | None = None,
    truth: bool | None = None,
    name: str = "",
    vmin: float = 0.0,
    vmax: float = 1.0,
    height: int = 256,
) -> Image.Image:
    """Draw image, ground truth, anomaly map and predicted mask side by side.

    The colours of the map mean the same in every picture: they span ``vmin`` to ``vmax``, whatever the map's own range.
    What is not inspected is dark and hatched, because the model has not seen it. Of an image that is more than four
    times as high as a panel, a further panel shows the surroundings of the highest value of the map, pixel by pixel.

    Image and pixel thresholds are two decisions, and need not agree. Where they do not, the panel of the mask says so;
    what is found on an image that counts as normal is outlined in grey, not in red.

    Args:
        image: The whole image at its own size: a PIL image of any mode, or uint8 ``(H, W, 3)`` or ``(H, W)``.
        anomaly_map: Map of the crop ``(h, w)`` at any size; normalised maps lie in [0, 1] with the threshold at 0.5.
        pred_mask: Mask of the crop ``(h, w)`` at any size; without it, its panel is left out.
        gt_mask: Mask of the whole image ``(h, w)`` at any size; without it, its panel is left out.
        crop_box: The part of the image that map and predicted mask cover.
        places: Which places of the crop are inspected, bool ``(h, w)`` at any size; by default all.
        score: The image's score, written above the panels.
        raw_score: The score before it was normalised, written beside it where it differs: normalised ones come close to
            1 long before raw ones end.
        anomalous: The verdict, written above the panels.
        truth: Whether the image is anomalous; a wrong verdict is written as a missed defect or a false alarm.
        name: What the image is called, written beside the verdict.
        vmin: Map value that is drawn as nothing found; only maps that are not normalised need another than 0.
        vmax: Map value that is drawn as hottest; only maps that are not normalised need another than 1.
        height: Height of a panel in pixels. Images wider than 3:1 get lower panels, so that the strip stays readable.

    Returns:
        The strip, in RGB.

    Raises:
        ValueError: A map or mask is not 2-D, the crop box is not inside the image, or a range or size is empty.
    """
    planes = {"anomaly_map": anomaly_map, "pred_mask": pred_mask, "gt_mask": gt_mask, "places": places}
    for field, plane in planes.items():
        if plane is not None and (plane.ndim != 2 or plane.size == 0):
            msg = f"{field} must have the shape (height, width), got {plane.shape}. Pass one image at a time."
            raise ValueError(msg)
    if not (0 <= crop_box.left < crop_box.right <= 1 and 0 <= crop_box.top < crop_box.bottom <= 1):
        msg = f"crop_box must hold fractions of the image with left < right and top < bottom, got {crop_box}."
        raise ValueError(msg)
    if vmax <= vmin or height < 1:
        msg = f"vmax must exceed vmin and height must be positive, got vmin={vmin}, vmax={vmax}, height={height}."
        raise ValueError(msg)

    whole = to_rgb(image)
    picture = panel_image(whole, height)
    plain = np.asarray(picture)

    inside = _inside(crop_box, places, picture.size)
    panels = {"image": plain}
    large = _is_large(whole.width, whole.height, height)
    window = _around_peak(anomaly_map, places, crop_box, whole, plain) if large else None
    if gt_mask is not None:
        marked = place_mask(gt_mask, WHOLE_IMAGE, picture.size)
        label = "ground truth" if marked.any() else "ground truth: empty"
        panels[label] = _outline(np.where(marked[..., None], plain, _dim(plain)), marked, _TRUTH, height)
    panels["anomaly map"] = _hatch_outside(heat_panel(plain, anomaly_map, crop_box, (vmin, vmax)), inside, height)
    if pred_mask is not None:
        found = place_mask(pred_mask, crop_box, picture.size)
        label = _mask_label(bool(found.any()), anomalous)
        line = LINE if anomalous is False else _FOUND
        # A tint tells the inside from the outside where the line runs off the image.
        tinted = np.where(found[..., None], 0.8 * plain + 0.2 * np.array(line), plain).astype(np.uint8)
        panels[label] = _outline(_hatch_outside(tinted, inside, height), found, line, height)
    if window is not None:
        left, top, right, bottom = window
        box = crop_box.seen_from(
            CropBox(left / whole.width, top / whole.height, right / whole.width, bottom / whole.height)
        )
        close = np.asarray(whole.crop(window))
        if pred_mask is not None:
            close = _outline(close, place_mask(pred_mask, box, picture.size), line, height)
        panels["closer"] = close
        panels["image"] = _framed(plain, [side * picture.width / whole.width for side in window])

    verdict = None if anomalous is None else "anomalous" if anomalous else "normal"
    headline = " - ".join(part for part in (_score_text(score, raw_score), verdict) if part)
    colour = INK if anomalous is None else _FOUND if anomalous else _FINE
    if None not in {anomalous, truth} and anomalous != truth:
        headline += ": missed defect" if truth else ": false alarm"
        colour = _WRONG
    note = ", ".join(part for part in (name, "" if inside.all() else "hatched: not inspected") if part)
    return lay_out(panels, headline, colour, note, (vmin, vmax), height)


def _around_peak(
    anomaly_map: np.ndarray, places: np.ndarray | None, crop_box: CropBox, image: Image.Image, panel: np.ndarray
) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a window of a panel's size in the image, around the map's highest value."""
    counted = anomaly_map
    if places is not None:
        counted = np.where(WHOLE_IMAGE.cut(places, anomaly_map.shape), anomaly_map, -np.inf)
    peak = np.unravel_index(counted.argmax(), counted.shape)
    x, y = (
        low + (place + 0.5) / count * (high - low)
        for low, high, place, count in zip(
            crop_box[:2], crop_box[2:], reversed(peak), reversed(counted.shape), strict=True
        )
    )
    height, width = panel.shape[:2]
    left = min(max(round(x * image.width - width / 2), 0), image.width - width)
    top = min(max(round(y * image.height - height / 2), 0), image.height - height)
    return left, top, left + width, top + height


def _framed(panel: np.ndarray, window: Sequence[float]) -> np.ndarray:
    """Draw where a window lies."""
    picture = Image.fromarray(panel)
    left, top, right, bottom = window
    draw = ImageDraw.Draw(picture)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=PAPER)
    draw.rectangle((left - 2, top - 2, right + 2, bottom + 2), outline=INK)
    return np.asarray(picture)


def draw_overlay(
    image: Image.Image | np.ndarray,
    shown_map: np.ndarray,
    *,
    pred_mask: np.ndarray | None = None,
    crop_box: CropBox = WHOLE_IMAGE,
    places: np.ndarray | None = None,
    height: int = 640,
) -> Image.Image:
    """Draw what is found over an image: heat, outlines, and hatching where nothing is inspected.

    Args:
        image: The whole image, as :func:`draw_result` takes it.
        shown_map: Map of the crop ``(h, w)``, normalised to [0, 1].
        pred_mask: Mask of the crop ``(h, w)``.
        crop_box: The part of the image that both cover.
        places: Which places of the crop are inspected; by default all.
        height: Height of the picture in pixels.
    """
    picture = panel_image(image, height)
    plain = np.asarray(picture)
    drawn = heat_panel(plain, shown_map, crop_box)
    drawn = _hatch_outside(drawn, _inside(crop_box, places, picture.size), height)
    if pred_mask is not None:
        drawn = _outline(drawn, place_mask(pred_mask, crop_box, picture.size), _FOUND, height)
    return Image.fromarray(drawn)


def heat_panel(
    panel: np.ndarray, plane: np.ndarray, crop_box: CropBox, value_range: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
    """Draw a map ``(h, w)`` of the crop over a panel ``(H, W, 3)``; its colours span a range of values."""
    low, high = value_range
    placed = _place_map(plane, crop_box, (panel.shape[1], panel.shape[0]))
    return _glow(panel, np.clip((placed - low) / (high - low), 0, 1))


def _mask_label(found: bool, anomalous: bool | None) -> str:
    """Say what a predicted mask is, also where it is not what the image's verdict lets expect."""
    if found:
        return "predicted mask" if anomalous is not False else "above the pixel threshold only"
    return "predicted mask: empty" if not anomalous else "no pixel above its threshold"


def _score_text(score: float | None, raw_score: float | None) -> str:
    if score is None:
        return ""
    return f"score {score:.2f}" + ("" if raw_score in {None, score} else f" (raw {raw_score:.4f})")


def panel_image(image: Image.Image | np.ndarray, height: int = 256) -> Image.Image:
    """Bring an image to the size of a panel; what has it stays as it is."""
    picture = to_rgb(image)
    return picture.resize(_panel_size(picture.width, picture.height, height), Image.Resampling.LANCZOS)


def panel_of(image: np.ndarray, height: int = 256) -> Image.Image | np.ndarray:
    """Keep of an image what :func:`draw_result` needs of it: a large one as it is, of which a part is shown closer."""
    return image if _is_large(image.shape[1], image.shape[0], height) else panel_image(image, height)


def _panel_size(width: int, height: int, panel_height: int) -> tuple[int, int]:
    """Width and height of the panel of an image."""
    scale = min(panel_height / height, _WIDEST_PANEL * panel_height / width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _is_large(width: int, height: int, panel_height: int) -> bool:
    """Whether an image is so much higher than its panel that a part of it is shown closer."""
    return height > _CLOSER * _panel_size(width, height, panel_height)[1]


def _place(plane: Image.Image, crop_box: CropBox, size: tuple[int, int], resample: Image.Resampling) -> np.ndarray:
    """Draw a plane of the crop into a frame of the whole image ``(width, height)``; 0 outside the crop."""
    affine = crop_box.from_image((plane.height, plane.width), size[::-1])
    return np.asarray(plane.transform(size, Image.Transform.AFFINE, affine, resample))


def _inside(crop_box: CropBox, places: np.ndarray | None, size: tuple[int, int]) -> np.ndarray:
    """Tell which pixels of a frame of the whole image ``(width, height)`` are inspected: bool ``(H, W)``."""
    inside = crop_box.inside(size[::-1])
    if places is None:
        return inside
    return inside & (_place(_as_image(places), crop_box, size, Image.Resampling.NEAREST) > 0)


def _place_map(anomaly_map: np.ndarray, crop_box: CropBox, size: tuple[int, int]) -> np.ndarray:
    # Between the pixels that are looked at, a small peak of a large map would be stepped over.
    shrink_x, shrink_y = _shrinks(anomaly_map, crop_box, size)
    highest = cv2.dilate(anomaly_map.astype(np.float32), np.ones((shrink_y, shrink_x), np.uint8))
    return _place(Image.fromarray(highest), crop_box, size, Image.Resampling.BILINEAR)


def place_mask(mask: np.ndarray, crop_box: CropBox, size: tuple[int, int]) -> np.ndarray:
    """Draw a mask of the crop into a frame of the whole image ``(width, height)``: bool ``(H, W)``."""
    # Nearest neighbour steps over thin scratches when a large mask shrinks, so they are widened to one panel pixel.
    shrink_x, shrink_y = _shrinks(mask, crop_box, size)
    solid = _dilate(_dilate(mask.astype(bool), _line(shrink_x)), ((y, x) for x, y in _line(shrink_y)))
    return _place(_as_image(solid), crop_box, size, Image.Resampling.NEAREST) > 0


def _shrinks(plane: np.ndarray, crop_box: CropBox, size: tuple[int, int]) -> tuple[int, int]:
    """Columns and rows of a plane of the crop to a pixel of a frame of the whole image ``(width, height)``."""
    width, height = size[0] * (crop_box.right - crop_box.left), size[1] * (crop_box.bottom - crop_box.top)
    return int(np.ceil(plane.shape[1] / width)), int(np.ceil(plane.shape[0] / height))


def _as_image(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8))


def _line(length: int) -> list[tuple[int, int]]:
    """Rows and columns of the pixels of a horizontal line around its middle."""
    return [(0, x - length // 2) for x in range(length)]


def _dilate(mask: np.ndarray, neighbours: Iterable[tuple[int, int]]) -> np.ndarray:
    """Set every pixel of a bool mask ``(H, W)`` that has one of these neighbours (rows down, columns right) in it."""
    grown = np.zeros_like(mask)
    height, width = mask.shape
    for y, x in neighbours:
        to_rows, to_columns = slice(max(0, -y), height - max(0, y)), slice(max(0, -x), width - max(0, x))
        of_rows, of_columns = slice(max(0, y), height - max(0, -y)), slice(max(0, x), width - max(0, -x))
        if abs(y) < height and abs(x) < width:
            grown[to_rows, to_columns] |= mask[of_rows, of_columns]
    return grown


def _glow(panel: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Blend colours over the panel: clear where the level is low, nearly solid well above the threshold of 0.5."""
    colours, opacity = _heat(level)
    return (panel * (1 - opacity) + colours * opacity).round().astype(np.uint8)


def heat_colours(level: np.ndarray) -> np.ndarray:
    """Colour a normalised map ``(h, w)``: RGBA ``(h, w, 4)``, uint8, clear where nothing is found."""
    colours, opacity = _heat(level)
    return np.concatenate([colours, 255 * opacity], axis=-1).round().astype(np.uint8)


def _heat(level: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps = np.linspace(0, 1, len(_HEAT))
    colours = np.stack([np.interp(level, steps, channel) for channel in _HEAT.T], axis=-1)
    ramp = np.clip((level - 0.15) / 0.65, 0, 1)[..., None]
    return colours, 0.9 * ramp**2 * (3 - 2 * ramp)


def _dim(panel: np.ndarray) -> np.ndarray:
    return (panel * 0.4).astype(np.uint8)


def _outline(panel: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], height: int) -> np.ndarray:
    # Around the mask, not on its edge: on a small defect the line would hide what it points at.
    reach = max(1, height // 128)
    widths = [round((reach**2 - y**2) ** 0.5) for y in range(-reach, reach + 1)]
    disc = [(row - reach, x) for row, width in enumerate(widths) for x in range(-width, width + 1)]
    ring = _dilate(mask, disc) & ~mask
    return np.where(ring[..., None], np.array(colour, np.uint8), panel)


def _hatch_outside(panel: np.ndarray, inside: np.ndarray, height: int) -> np.ndarray:
    if inside.all():
        return panel
    rows, columns = np.indices(panel.shape[:2])
    period = max(6, height // 24)
    stripe = np.clip(1.5 - np.abs((columns + rows) % period - period / 2), 0, 1)[..., None] * 0.45
    hatched = _dim(panel) * (1 - stripe) + 255 * stripe
    border = _dilate(inside, [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]) & ~inside
    hatched[border] = 255
    return np.where(inside[..., None], panel, hatched).astype(np.uint8)


def lay_out(
    panels: dict[str, np.ndarray],
    headline: str,
    headline_colour: tuple[int, int, int],
    note: str,
    value_range: tuple[float, float],
    height: int,
) -> Image.Image:
    """Put labelled panels into a row under a line with the headline, a note and the scale of the map's colours."""
    head_size = max(11, height // 15)
    head_font, font = ImageFont.load_default(head_size), ImageFont.load_default(max(10, height // 19))
    line, gap = round(head_size * 1.5), max(4, height // 32)

    # The scale is drawn over mid grey by the function that draws the map, so its colours are those of the panel.
    ramp = np.tile(np.linspace(0, 1, 4 * line), (line // 2, 1))
    scale = Image.fromarray(_glow(np.full((*ramp.shape, 3), 128, np.uint8), ramp))
    low, high = (f"{value:.3g}" for value in value_range)
    scale_width = scale.width + round(font.getlength(low) + font.getlength(high)) + gap

    panel_height, panel_width = panels["image"].shape[:2]
    column = max(panel_width, *(round(font.getlength(label)) for label in panels))
    text_width = round(head_font.getlength(headline) + font.getlength(note)) + 3 * gap
    width = 2 * gap + max(len(panels) * (column + gap) - gap, text_width + scale_width)
    top = gap + 2 * line
    strip = Image.new("RGB", (width, top + panel_height + gap), PAPER)
    draw = ImageDraw.Draw(strip)

    middle = gap + line // 2
    draw.text((gap, middle), headline, headline_colour, head_font, anchor="lm")
    left = gap + (round(head_font.getlength(headline)) + 2 * gap if headline else 0)
    draw.text((left, middle), note, _FAINT, font, anchor="lm")
    draw.text((width - gap, middle), high, _FAINT, font, anchor="rm")
    left = width - gap - round(font.getlength(high)) - gap // 2 - scale.width
    strip.paste(scale, (left, middle - scale.height // 2))
    draw.text((left - gap // 2, middle), low, _FAINT, font, anchor="rm")

    for index, (label, panel) in enumerate(panels.items()):
        left = gap + index * (column + gap)
        draw.text((left, top - line // 2), label, _FAINT, font, anchor="lm")
        # The frame keeps images with a white background apart from the paper.
        draw.rectangle((left - 1, top - 1, left + panel_width, top + panel_height), outline=LINE)
        strip.paste(Image.fromarray(panel), (left, top))
    return strip

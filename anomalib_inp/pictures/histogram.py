# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""A histogram of scores with thresholds, as SVG."""

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

WIDTH, HEIGHT, BOTTOM, TOP, SIDE = 720, 200, 24, 20, 8
BINS = 48
COLOURS = ("#2f7dd1", "#e06c1f", "#7b61c9", "#2a9d8f")


def score_histogram(
    groups: Mapping[str, Sequence[float]], lines: Mapping[str, float], title: str = "Scores and thresholds"
) -> str:
    """Draw scores of several groups, and lines at thresholds.

    Args:
        groups: Raw scores by what they are of; empty ones are left out.
        lines: Raw scores by what a line is called; the last is drawn solid, the others dashed.
        title: What the picture is, for those who cannot see it.

    Returns:
        The ``<svg>`` element. Heights are roots of counts, so that single images are seen beside many.
    """
    groups = {name: values for name, values in groups.items() if len(values)}
    values = np.concatenate([np.ravel(list(values)) for values in [*groups.values(), list(lines.values())]])
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
    room = 0.05 * ((high - low) or abs(high) or 1.0)
    low, high = low - room, high + room
    counts = {name: np.histogram(scores, BINS, (low, high))[0] for name, scores in groups.items()}
    highest = max([1, *(int(bins.max()) for bins in counts.values())])
    width, floor = (WIDTH - 2 * SIDE) / BINS, HEIGHT - BOTTOM

    def place(score: float) -> float:
        return SIDE + (score - low) / (high - low) * (WIDTH - 2 * SIDE)

    parts = [f'<line x1="{SIDE}" x2="{WIDTH - SIDE}" y1="{floor}" y2="{floor}" stroke="currentColor" opacity=".3"/>']
    for colour, bins in zip(COLOURS, counts.values(), strict=False):
        for index, count in enumerate(bins):
            tall = (count / highest) ** 0.5 * (floor - TOP)
            box = f'x="{SIDE + index * width + 0.5:.1f}" y="{floor - tall:.1f}" width="{width - 1:.1f}"'
            parts.append(f'<rect {box} height="{tall:.1f}" fill="{colour}" fill-opacity=".6"/>' if count else "")
    left = SIDE
    for colour, (name, scores) in zip(COLOURS, groups.items(), strict=False):
        text = f"{name} ({len(scores)})"
        parts.append(f'<rect x="{left}" y="2" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{left + 14}" y="11">{escape(text)}</text>')
        left += 24 + 7 * len(text)
    for index, score in enumerate(lines.values()):
        dashes = "" if index == len(lines) - 1 else ' stroke-dasharray="4 4"'
        x = f"{place(score):.1f}"
        parts.append(
            f'<line x1="{x}" x2="{x}" y1="{TOP - 4}" y2="{floor}" stroke="currentColor" stroke-width="2"{dashes}/>'
        )
    for score, anchor in ((low, "start"), ((low + high) / 2, "middle"), (high, "end")):
        parts.append(f'<text x="{place(score):.1f}" y="{HEIGHT - 7}" text-anchor="{anchor}">{score:.4g}</text>')
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" style="width:100%;font:12px system-ui,sans-serif;fill:currentColor"'
    return f'<svg role="img" aria-label="{escape(title)}" {size}>{"".join(parts)}</svg>'

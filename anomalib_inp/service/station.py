# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The station: a page of the service where somebody looks at verdicts, moves the threshold and draws the mask."""

import html
import io
import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported: nothing is sent anywhere

import gradio as gr
import numpy as np
from fastapi import FastAPI
from PIL import Image

from anomalib_inp.images import decode_pixels, to_rgb
from anomalib_inp.pictures.histogram import score_histogram
from anomalib_inp.results.feedback import Mistake, keep_feedback
from anomalib_inp.results.records import Record
from anomalib_inp.service.inspector import OVERLAY, Answer
from anomalib_inp.service.limits import RefusedError, check_allowed
from anomalib_inp.thresholds.drift import STEP, WHAT, WINDOW
from anomalib_inp.thresholds.rates import CONFIDENCE, Rate

if TYPE_CHECKING:
    from anomalib_inp.service.app import Service

COLUMNS = ["x", "y", "width", "height", "area", "% of the image", "peak", "mean"]
COLOURS = {"anomalous": "#c81e24", "normal": "#007d48", None: "#5b6470"}
CANVAS = (720, 540)
KEPT = (3600, 86400)
"""Seconds between two looks at what was uploaded, and that it is kept: a station runs for months."""
MOST_SEEN = 1000
"""Scores of images that were looked at, which the histogram shows."""
NOTHING_SEEN = "Look at an image first."
NO_NUMBER = "There is no number: type one, or move the slider."
NO_REFERENCE = "The model keeps too few scores of normal validation images to compare with"
CSS = """
.drift td, .drift th { padding: 4px 14px; text-align: left; }

#slider input[type=number] { display: none; }
.verdict { font-size: 1.6em; font-weight: 600; }
.verdict small { font-weight: 400; font-size: .6em; opacity: .75; }
"""


class Seen(NamedTuple):
    """An image that somebody looks at.

    Attributes:
        file: The file that was uploaded.
        record: What was said of it.
        overlay: The picture of it; ``None`` where it cannot be read.
    """

    file: str
    record: Record
    overlay: Image.Image | None


class Station:
    """What the page does when something is clicked.

    Args:
        service: The service.
    """

    def __init__(self, service: "Service") -> None:
        self.service = service
        self.scores: list[float] = []

    async def look(self, files: list[str] | str | None) -> tuple[Any, ...]:
        """Look at the images that were dropped or photographed."""
        paths = [files] if isinstance(files, str) else files or []
        seen: list[Seen] = []
        for path in paths:  # one after the other, so that other clients come in between
            name = Path(path).name
            try:
                seen += await self.service.look([(name, Path(path).read_bytes())], partial(_seen, path))
            except RefusedError as error:
                raise refusal(error) from error
        self.scores += [one.record["raw_score"] for one in seen if one.record["raw_score"] is not None]
        del self.scores[:-MOST_SEEN]
        pictures = [(one.overlay, _caption(one.record)) for one in _readable(seen)]
        gallery = gr.Gallery(value=pictures, visible=len(pictures) > 1)
        return seen, 0, gallery, *self.show(seen, 0), ""

    def show(self, seen: list[Seen], index: int) -> tuple[Any, ...]:
        """Show one of the images: verdict, picture, regions."""
        shown = _readable(seen)
        faults = [one.record["error"] for one in seen if one.overlay is None]
        said = "".join(f"<p>{html.escape(str(fault))}</p>" for fault in faults)
        if not shown:
            return said or "<p>Drop images, or take one from the camera.</p>", None, []
        record = shown[index].record
        return _verdict(record) + said, shown[index].overlay, _rows(record)

    def choose(self, seen: list[Seen], event: gr.SelectData) -> tuple[Any, ...]:
        """Show the image that was clicked."""
        return event.index, *self.show(seen, event.index), ""

    def mark(self, mistake: Mistake, seen: list[Seen], index: int, token: str, request: gr.Request) -> str:
        """Keep an image whose verdict was wrong."""
        self.check(token, request)
        shown = _readable(seen)
        if not shown:
            raise refusal(NOTHING_SEEN)
        one = shown[index]
        content, folder = Path(one.file).read_bytes(), Path(self.service.settings.feedback)
        origin, score, model = one.record["path"], one.record["raw_score"], one.record["model"]
        try:
            kept = keep_feedback(folder, mistake, content, origin, score, model)
        except (OSError, ValueError) as error:
            raise refusal(error) from error
        return f"Kept as {folder / kept['file']}."

    def thresholds(self) -> tuple[Any, ...]:
        """Show the scores, and the threshold in force."""
        metadata = self.service.inspector.loaded.metadata
        in_force = metadata.in_force[0]
        if math.isnan(in_force):
            return gr.Slider(visible=False), gr.Number(visible=False), "<p>The model has no thresholds.</p>"
        kept = [*metadata.validation.normal, *metadata.validation.anomalous, *self.scores, in_force]
        room = 0.1 * ((max(kept) - min(kept)) or abs(in_force) or 1)
        low, high = min(kept) - room, max(kept) + room
        slider = gr.Slider(float(f"{low:.4g}"), float(f"{high:.4g}"), in_force, step=(high - low) / 1000, visible=True)
        return slider, gr.Number(in_force, visible=True), self.histogram(in_force)

    def histogram(self, threshold: float | None) -> str:
        """Draw the scores with a threshold, and say what it would do."""
        if threshold is None:
            return f"<p>{NO_NUMBER}</p>"
        metadata = self.service.inspector.loaded.metadata
        normal, anomalous = metadata.validation
        groups = {
            "normal validation images": normal,
            "anomalous validation images": anomalous,
            "seen here": self.scores,
        }
        said = []
        if normal:
            alarms = Rate(sum(score > threshold for score in normal), len(normal))
            bound = f"{alarms.upper_bound(CONFIDENCE):.1%}"
            said.append(
                f"Above it are {alarms.hits} of {alarms.total} normal validation images; of those to come, at most "
                f"{bound}, {CONFIDENCE:.0%} sure."
            )
        if anomalous:
            said.append(
                f"{sum(score > threshold for score in anomalous)} of {len(anomalous)} anomalous ones are caught."
            )
        if self.scores:
            said.append(f"{sum(score > threshold for score in self.scores)} of {len(self.scores)} seen here are above.")
        picture = score_histogram(groups, {"in force": metadata.in_force[0], "moved": threshold})
        return picture + "".join(f"<p>{sentence}</p>" for sentence in said)

    def move(self, threshold: float | None, token: str, request: gr.Request) -> tuple[Any, ...]:
        """Move the threshold, in the file of the model."""
        self.check(token, request)
        if threshold is None:
            raise refusal(NO_NUMBER)
        metadata = self.service.inspector.loaded.metadata
        shift = metadata.image.shift(metadata.image_limit)  # where a sensitivity moves what is in force
        try:
            self.service.inspector.set_thresholds(threshold - shift, None)
        except (OSError, ValueError) as error:
            raise refusal(error) from error
        gr.Info(f"The image threshold is {threshold:.6g} now.")
        return self.thresholds()

    def background(self, seen: list[Seen], index: int) -> dict[str, Any]:
        """Put the image that is shown under the brush; what is ignored now is black in it."""
        shown = _readable(seen)
        inspection = self.service.inspector.loaded.metadata.inspection
        if shown:
            picture = to_rgb(self._pixels(shown[index]))
        else:
            size = CANVAS if inspection.pixels is None else inspection.pixels.shape[::-1]
            picture = Image.new("RGB", size, (225, 228, 232))
        picture.thumbnail(CANVAS)
        if inspection.pixels is not None:
            mask = Image.fromarray(inspection.pixels.astype(np.uint8) * 255).resize(picture.size)
            picture = Image.composite(picture, Image.new("RGB", picture.size), mask)
        return {"background": picture, "layers": [], "composite": None}

    def inspected(self, seen: list[Seen], index: int) -> tuple[dict[str, Any], float]:
        """Show what is inspected now: the picture under the brush, and the smallest region."""
        return self.background(seen, index), self.service.inspector.loaded.metadata.inspection.smallest_area

    def ignore(self, painted: dict[str, Any] | None, area: float | None, token: str, request: gr.Request) -> str:
        """Ignore what was painted, besides what is ignored already, in the file of the model."""
        layers = [np.asarray(layer)[..., 3] > 0 for layer in (painted or {}).get("layers", []) if layer is not None]
        if not layers or not np.any(layers):
            return self._inspect(None, area, token, request)
        looked_at = ~np.any(layers, axis=0)
        before = self.service.inspector.loaded.metadata.inspection.pixels
        if before is not None:  # at the finer of both sizes
            size = max(before.shape[::-1], looked_at.shape[::-1])
            both = [Image.fromarray(plane.astype(np.uint8) * 255).resize(size) for plane in (before, looked_at)]
            looked_at = np.logical_and(*(np.asarray(plane) > 0 for plane in both))
        file = io.BytesIO()
        Image.fromarray(looked_at.astype(np.uint8) * 255).save(file, "PNG")
        return self._inspect(file.getvalue(), area, token, request)

    def ignore_nothing(self, area: float | None, token: str, request: gr.Request) -> str:
        """Inspect everything again, in the file of the model."""
        return self._inspect("", area, token, request)

    def _inspect(self, mask: bytes | str | None, area: float | None, token: str, request: gr.Request) -> str:
        self.check(token, request)
        before = self.service.inspector.loaded.metadata.inspection
        try:
            inspection = self.service.inspector.set_inspection(mask, area)
        except (OSError, ValueError) as error:
            raise refusal(error) from error
        if inspection.mask != before.mask:
            self.scores.clear()  # of other places
        pixels = inspection.pixels
        share = "everything" if pixels is None else f"{pixels.mean():.1%} of the image"
        return (
            f"Inspected: {share}; regions have at least {inspection.smallest_area:g} pixels. Choose the threshold anew."
        )

    def drift(self) -> str:
        """Say whether what passes is like the normal validation images."""
        monitor = self.service.monitor
        if not monitor.found:
            needed = f"Nothing is said before {STEP} images have passed" if monitor.reference else NO_REFERENCE
            return f"<p>{needed}.</p>"
        rows = "".join(
            f"<tr><td>{one.quantity}</td><td>{one.reference:.4g}</td><td>{one.current:.4g}</td><td>{one.p_value:.2g}</td>"
            f'<td style="color:{COLOURS["anomalous" if one.drifts else "normal"]}">'
            f"{WHAT[one.quantity] if one.drifts else 'as it was'}</td></tr>"
            for one in monitor.found
        )
        head = "".join(f"<th>{name}</th>" for name in ("", "training", "last images", "p", ""))
        return f'<table class="drift"><tr>{head}</tr>{rows}</table>'

    def prototypes(self, seen: list[Seen], index: int) -> Image.Image | None:
        """Draw which prototype explains which patch of the image that is shown."""
        shown = _readable(seen)
        if not shown:
            return None
        one = shown[index]
        return self.service.inspector.loaded.model.explain(self._pixels(one), one.record["path"])[0]

    def _pixels(self, one: Seen) -> np.ndarray:
        """Read an image that was looked at again."""
        return decode_pixels(Path(one.file).read_bytes(), one.record["path"], self.service.settings.max_pixels)

    def check(self, token: str, request: gr.Request) -> None:
        """Refuse changes of somebody who may not make them."""
        try:
            client = request.client.host if request.client else None
            check_allowed(self.service.settings.token, token, client, request.headers)
        except RefusedError as error:
            self.service.metrics.refuse(error.reason)
            raise refusal(error) from error


def refusal(error: Exception | str) -> gr.Error:
    """Say on the page why something is not done; it is no fault of the service's, so its log says nothing."""
    return gr.Error(str(error), print_exception=False)


def _seen(path: str, answer: Answer) -> Seen:
    png = answer.picture(OVERLAY)
    return Seen(path, answer.record, None if png is None else Image.open(io.BytesIO(png)))


def _readable(seen: list[Seen]) -> list[Seen]:
    """Leave out what could not be read: the gallery shows, and counts, the others."""
    return [one for one in seen if one.overlay is not None]


def _caption(record: Record) -> str:
    return f"{record['path']}: {record['verdict'] or 'no verdict'}, {record['score']:.3f}"


def _verdict(record: Record) -> str:
    colour, count = COLOURS[record["verdict"]], len(record["regions"])
    regions = f"{count} region{'' if count == 1 else 's'}"
    score = f"score {record['score']:.3f}, raw {record['raw_score']:.4g}, {regions}, {html.escape(record['path'])}"
    return (
        f'<div class="verdict" style="color:{colour}">{record["verdict"] or "no verdict"} <small>{score}</small></div>'
    )


def _rows(record: Record) -> list[list[float]]:
    return [
        [
            *(region["box"][0], region["box"][1]),
            *(region["box"][2] - region["box"][0], region["box"][3] - region["box"][1]),
            *(round(region["area"]), round(region["area_percent"], 3)),
            *(round(region["peak"], 4), round(region["mean"], 4)),
        ]
        for region in record["regions"]
    ]


def build_page(station: Station) -> gr.Blocks:
    """Lay the page out."""
    settings = station.service.settings
    with gr.Blocks(
        title=f"Station: {settings.path.parent.name}/{settings.path.name}", analytics_enabled=False, delete_cache=KEPT
    ) as page:
        seen, index = gr.State([], time_to_live=KEPT[1]), gr.State(0)
        token = gr.Textbox(label="Token for changes", type="password", visible=bool(settings.token), elem_id="token")
        with gr.Tab("Look", id="look"), gr.Row():
            with gr.Column(scale=2):
                files = gr.File(
                    file_count="multiple", file_types=["image"], label="Drop images", elem_id="files", height=160
                )
                camera = gr.Image(sources=["webcam"], type="filepath", label="Or take one", format="png", height=220)
                gallery = gr.Gallery(
                    label="Images", columns=3, height=360, visible=False, allow_preview=False, elem_id="gallery"
                )
            with gr.Column(scale=3):
                verdict = gr.HTML("<p>Drop images, or take one from the camera.</p>", elem_id="verdict")
                picture = gr.Image(
                    label="What was found", interactive=False, format="png", elem_id="picture", buttons=[], height=460
                )
                with gr.Row():
                    alarm = gr.Button("It is fine: a false alarm", elem_id="false-alarm")
                    missed = gr.Button("It has a defect: missed", elem_id="missed")
                marked = gr.Markdown(elem_id="marked")
                regions = gr.Dataframe(
                    headers=COLUMNS, label="Regions, in pixels of the image", interactive=False, elem_id="regions"
                )
        with gr.Tab("Threshold", id="threshold") as threshold_tab:
            histogram = gr.HTML(elem_id="histogram")
            slider = gr.Slider(0, 1, 0.5, label="Image threshold, raw score", elem_id="slider", buttons=[])
            number = gr.Number(label="Or as a number", elem_id="number")
            move = gr.Button("Put it in force", variant="primary", elem_id="move")
        with gr.Tab("Mask", id="mask", render_children=True) as mask_tab:
            gr.Markdown(
                "Paint over what is to be ignored, besides what is black already. It counts in no score, region or "
                "metric."
            )
            editor = gr.ImageEditor(
                type="pil", label="What is ignored", sources=[], transforms=[], format="png", elem_id="editor",
                brush=gr.Brush(default_size=30, colors=["#000000"], color_mode="fixed"), canvas_size=CANVAS,
            )  # fmt: skip
            area = gr.Number(0, label="Smallest region, pixels of the image", minimum=0, elem_id="area")
            with gr.Row():
                ignore = gr.Button("Ignore what is painted too", variant="primary", elem_id="ignore")
                everything = gr.Button("Inspect everything again", elem_id="everything")
            masked = gr.Markdown(elem_id="masked")

        if getattr(station.service.inspector.loaded.model, "has_prototypes", False):
            with gr.Tab("Prototypes", id="prototypes") as prototypes_tab:
                gr.Markdown("Each patch in the colour of the prototype that it is nearest to, and how far it is.")
                explained = gr.Image(interactive=False, format="png", elem_id="explained", buttons=[], show_label=False)
            prototypes_tab.select(
                station.prototypes, [seen, index], explained, api_visibility="private", show_progress="minimal"
            )
        with gr.Tab("Drift", id="drift") as drift_tab:
            gr.Markdown(
                f"The last {WINDOW} images beside the normal ones of the training; scores, of the validation (medians)."
            )
            drift = gr.HTML(elem_id="drift")

        shown = [verdict, picture, regions, marked]
        quick: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        for arrives, source in ((files.upload, files), (camera.input, camera)):
            arrives(station.look, source, [seen, index, gallery, *shown], **quick)
        gallery.select(station.choose, seen, [index, *shown], **quick)
        alarm.click(_marking(station, "false_alarm"), [seen, index, token], marked, **quick)
        missed.click(_marking(station, "missed"), [seen, index, token], marked, **quick)
        threshold_tab.select(station.thresholds, None, [slider, number, histogram], **quick)
        drift_tab.select(station.drift, None, drift, **quick)
        gr.Timer(10).tick(station.drift, None, drift, **quick)
        slider.input(lambda value: value, slider, number, **quick)
        number.change(station.histogram, number, histogram, **quick)
        move.click(station.move, [number, token], [slider, number, histogram], **quick)
        in_force: dict[str, Any] = {"fn": station.inspected, "inputs": [seen, index], "outputs": [editor, area]} | quick
        mask_tab.select(**in_force)
        for button, change, given in (
            (ignore, station.ignore, [editor, area, token]),
            (everything, station.ignore_nothing, [area, token]),
        ):
            button.click(change, given, masked, **quick).success(**in_force)
    return page


def _marking(station: Station, mistake: Mistake) -> Any:
    def mark(seen: list[Seen], index: int, token: str, request: gr.Request) -> str:
        return station.mark(mistake, seen, index, token, request)

    return mark


def mount_station(app: FastAPI, service: "Service") -> FastAPI:
    """Put the station at ``/`` of a service."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # no web fonts
    most = service.settings.max_upload
    return gr.mount_gradio_app(
        app, build_page(Station(service)), path="/", max_file_size=most, footer_links=[], theme=theme, css=CSS
    )

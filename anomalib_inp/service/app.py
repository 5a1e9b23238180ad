# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The service: images in, records out; settings, health and counts."""

import base64
import binascii
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from anomalib_inp import __version__
from anomalib_inp.results.image_statistics import measure_image
from anomalib_inp.service.inspector import HEAT, OVERLAY, Answer, Inspector
from anomalib_inp.service.limits import BoundedQueue, LimitUploads, RefusedError, check_allowed
from anomalib_inp.service.metrics import ServiceMetrics
from anomalib_inp.service.settings import Settings
from anomalib_inp.thresholds.drift import DriftMonitor

T = TypeVar("T")
logger = logging.getLogger(__name__)

DESCRIPTION = """Send images to `/predict`; the answer is a list of records as in `predictions.jsonl`."""


class PredictionAnswer(BaseModel):
    """What is said of the images of a request, in their order."""

    predictions: list[dict[str, Any]] = Field(
        description="Records as in predictions.jsonl, with the pictures asked for."
    )


class NewThresholds(BaseModel):
    """Raw thresholds; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)
    image: float | None = None
    pixel: float | None = None


class NewInspection(BaseModel):
    """What is inspected; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)
    mask: str | None = Field(None, description="An image in Base64, white where to look; empty for everywhere.")
    smallest_area: float | None = Field(None, description="Pixels of the image that a region has at least.")


class Service:
    """What the parts of a service share: the model, the queue and the counts.

    Args:
        settings: The settings.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.inspector = Inspector(settings)
        self.metrics = ServiceMetrics()
        self.queue = BoundedQueue(settings.threads, settings.queue, settings.timeout)
        self.metrics.watch(lambda: self.queue.length)
        self._monitor = DriftMonitor(self.inspector.loaded.metadata.reference)
        self._watched = self.inspector.loaded.digest

    @property
    def monitor(self) -> DriftMonitor:
        """What compares the images that pass with the validation images; anew where others are kept now."""
        loaded = self.inspector.loaded
        if loaded.digest != self._watched:
            monitor = DriftMonitor(loaded.metadata.reference)
            if monitor.reference != self._monitor.reference:
                self._monitor = monitor
            self._watched = loaded.digest
        return self._monitor

    def observe(self, answer: Answer) -> None:
        """Compare an image with those of the validation; what is to be told goes to the log."""
        if answer.prediction is None or answer.pixels is None:
            return
        values = {"score": answer.prediction.raw_score, **measure_image(answer.pixels)._asdict()}
        monitor = self.monitor
        for sentence in monitor.add(values):
            logger.warning(sentence)
        self.metrics.drift(monitor.found)

    async def look(self, images: list[tuple[str, bytes]], then: Callable[[Answer], T]) -> list[T]:
        """Look at images, and make something of what is said of each, in the thread that has looked.

        Raises:
            RefusedError: There is no room for them, or they took too long.
        """
        begin = time.perf_counter()

        def task(name: str, content: bytes) -> T:
            answer = self.inspector.look(content, name)
            made = then(answer)
            self.observe(answer)
            self.metrics.count(answer.record, time.perf_counter() - begin)
            return made

        try:
            return await self.queue.run([partial(task, *image) for image in images])
        except RefusedError as error:
            self.metrics.refuse(error.reason)
            raise

    def describe(self) -> dict[str, Any]:
        """Say what the model says of itself."""
        loaded = self.inspector.loaded
        metadata = loaded.metadata
        image, pixel = (None if math.isnan(value) else value for value in metadata.in_force)
        return {
            "model": self.settings.path.name,
            "digest": loaded.digest,
            "version": __version__,
            "category": self.settings.category or metadata.category,
            "categories": list(metadata.categories),
            "normalized": metadata.normalized,
            "thresholds": {"image": image, "pixel": pixel},
            "crop_box": list(metadata.crop_box),
            "inspection": metadata.inspection._asdict(),
            "validation": metadata.validation._asdict(),
        }


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; without settings, with those that the process was started with.

    Raises:
        ValueError: The model is no export of ours.
    """
    settings = settings or Settings.from_environment()
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.queue.pool.shutdown(wait=True)  # what runs is finished

    # its page of documentation needs no network
    app = FastAPIOffline(title="anomalib-inp", description=DESCRIPTION, version=__version__, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(LimitUploads, most=settings.max_upload, seconds=settings.timeout, refused=service.metrics.refuse)

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> JSONResponse:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return JSONResponse({"detail": str(error)}, error.status, headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    def allowed(request: Request) -> None:
        client = request.client.host if request.client else None
        try:
            check_allowed(settings.token, request.headers.get("authorization"), client, request.headers)
        except RefusedError as error:
            service.metrics.refuse(error.reason)
            raise

    @app.post("/predict", response_model=PredictionAnswer, openapi_extra=_BODY)
    async def predict(
        request: Request,
        heat_map: bool = Query(False, description="Add the heat map of the inspected part, a grey PNG in Base64."),
        overlay: bool = Query(False, description="Add the image with what was found, a PNG in Base64."),
        name: str = Query("", description="What the image of a body that is an image is called."),
    ) -> Response:
        """Look at images: one as the body of the request, or several as multipart/form-data.

        An image that cannot be read has a record that says so; if it is so of all, the status is 422.
        """
        images = await _images_of(request, name)
        pictures = [kind for kind, wanted in ((HEAT, heat_map), (OVERLAY, overlay)) if wanted]
        answers = await service.look(images, lambda answer: answer.as_json(pictures))
        failed = all(answer["error"] is not None for answer in answers)
        return JSONResponse({"predictions": answers}, 422 if failed else 200)

    @app.get("/model")
    def model() -> dict[str, Any]:
        """Say what the model says of itself: thresholds in force, what is inspected, validation scores."""
        return service.describe()

    @app.get("/drift")
    def drift() -> list[dict[str, Any]]:
        """Say whether the last images are like the normal validation images: scores, brightness, sharpness."""
        return [found._asdict() for found in service.monitor.found]

    @app.put("/thresholds")
    def thresholds(request: Request, new: NewThresholds) -> dict[str, Any]:
        """Move thresholds, in the file of the model: with the token, or from the service's own computer."""
        allowed(request)
        _changed(lambda: service.inspector.set_thresholds(new.image, new.pixel))
        return service.describe()

    @app.put("/inspection")
    def inspection(request: Request, new: NewInspection) -> dict[str, Any]:
        """Change what is inspected, in the file of the model: with the token, or from the service's own computer."""
        allowed(request)
        mask = new.mask and _changed(lambda: base64.b64decode(new.mask or "", validate=True))
        _changed(lambda: service.inspector.set_inspection(mask, new.smallest_area))
        return service.describe()

    @app.get("/health")
    def health() -> dict[str, str]:
        """Say that the process lives."""
        return {"status": "alive"}

    @app.get("/ready")
    def ready() -> Response:
        """Say whether images are taken: 503 while the queue is full."""
        full = service.queue.is_full
        return JSONResponse({"status": "full" if full else "ready"}, 503 if full else 200)

    @app.get("/metrics")
    def metrics() -> Response:
        """Count, for Prometheus."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    if settings.station:
        from anomalib_inp.service.station import mount_station

        app = mount_station(app, service)
    return app


_BODY = {
    "requestBody": {
        "content": {
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
        }
    }
}


async def _images_of(request: Request, name: str) -> list[tuple[str, bytes]]:
    """List the images of a request: names and contents of files."""
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        try:
            form = await request.form()
        except StarletteHTTPException as error:
            raise HTTPException(422, str(error.detail)) from error
        images = [
            (part.filename or field, await part.read())
            for field, part in form.multi_items()
            if isinstance(part, UploadFile)
        ]
        await form.close()
    else:
        content = await request.body()
        images = [(name, content)] if content else []
    if not images:
        raise HTTPException(
            422, "There is no image in the request: send one as the body, or files as multipart/form-data."
        )
    return images


def _changed(change: Callable[[], Any]) -> Any:
    """Make a change; what is wrong with it is what the client is told."""
    try:
        return change()
    except (ValueError, binascii.Error) as error:
        raise HTTPException(422, str(error)) from error
    except OSError as error:  # the file is gone, or the disk full
        raise HTTPException(503, str(error)) from error

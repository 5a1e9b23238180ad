# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Screens a folder of images without labels: what is unlike its own image and unlike the others is suspicious."""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from anomalib_inp.encoder.frozen import FrozenEncoder
from anomalib_inp.frame import WHOLE_IMAGE
from anomalib_inp.images import as_batch, read_pixels
from anomalib_inp.outputs import Reconstruction
from anomalib_inp.preprocessing import InpPreProcessor
from anomalib_inp.results.score_table import read_rows, write_rows
from anomalib_inp.runtime.ahead import THREADS, in_order
from anomalib_inp.runtime.job import Item, Job
from anomalib_inp.runtime.metadata import Metadata
from anomalib_inp.runtime.model import Predictions, Prepared
from anomalib_inp.scoring.image_score import image_score
from anomalib_inp.scoring.memory import directions
from anomalib_inp.scoring.mutual import mutual_distance
from anomalib_inp.scoring.self_similarity import SelfDistance
from anomalib_inp.scoring.smoothing import Smoothing
from anomalib_inp.thresholds.scale import NO_SCALE

MAP_SIZE = (256, 256)
BRIGHTEST = 0.995
"""Share of all values of a folder that lie below 1, where pictures are brightest."""


class Screen:
    """Compares the images of a folder with each other and with themselves, and is read like an exported model.

    Of each image, the distance of each token to the most similar tokens of other images, in the shallow half of the
    tapped blocks, is multiplied with its self-distance (:class:`SelfDistance`). Each image is encoded once; what is
    kept of the images is what the others are compared with, in 16 bits, and a small map of each.

    Args:
        encoder: The frozen encoder.
        image_size: Height and width in pixels that images are resized to.
        references: How many images the others are compared with, drawn evenly from all.

    Attributes:
        metadata: What an exported model says of itself: there are no thresholds.
    """

    metadata = Metadata(False, NO_SCALE, NO_SCALE, WHOLE_IMAGE)

    def __init__(self, encoder: FrozenEncoder, image_size: tuple[int, int], references: int = 256) -> None:
        if references < 2:
            msg = f"references must be at least 2 images that the others are compared with, got {references}."
            raise ValueError(msg)
        self.encoder = encoder
        self.image_size = image_size
        self.transform = InpPreProcessor(image_size).transform
        self.self_distance = SelfDistance()
        self.smoothing = Smoothing(MAP_SIZE)
        self.references = references
        self.readings: dict[bytes, Tensor] = {}
        self.brightest = 1.0

    @torch.no_grad()
    def compare(self, items: Sequence[Item], progress: Callable[[Iterable[Item]], Iterable[Item]] = iter) -> None:
        """Compare the images with each other; those that cannot be read are left out.

        Args:
            items: The images.
            progress: Shows how far it is.
        """
        places = np.linspace(0, len(items) - 1, min(len(items), self.references)).round().astype(int)
        chosen = [items[place] for place in dict.fromkeys(places)]
        first = set(map(id, chosen))
        known: dict[bytes, Tensor] = {}
        own: dict[bytes, Tensor] = {}
        with ThreadPoolExecutor(THREADS) as pool:
            # What the others are compared with comes first, and waits until it is all there.
            order = chosen + [item for item in items if id(item) not in first]
            for place, read in enumerate(in_order(pool, self._read, progress(order))):
                if read is not None:
                    key, image = read
                    tokens, own[key] = self._encode(image)
                    if place < len(chosen):
                        known[key] = tokens.half()
                    else:
                        self.readings[key] = own.pop(key) * self._mutual(key, tokens, known)
                if place == len(chosen) - 1:
                    self.readings = {key: own[key] * self._mutual(key, known[key].float(), known) for key in known}
                    own.clear()
        if self.readings:
            values = torch.cat([reading.flatten() for reading in self.readings.values()])
            self.brightest = float(values.kthvalue(max(1, math.ceil(BRIGHTEST * len(values)))).values) or 1.0

    def prepare(self, pixels: np.ndarray) -> Prepared:
        """Name an image ``(H, W, 3)`` by its pixels.

        Raises:
            ValueError: It was not among those that were compared.
        """
        if (key := _key(pixels)) not in self.readings:
            msg = "it was written or changed while the images were compared with each other: screen them again."
            raise ValueError(msg)
        return Prepared(np.frombuffer(key, dtype=np.uint8))

    def stream(self, batches: Iterable[Prepared]) -> Iterator[Predictions]:
        """Give the score and the map of each image that :meth:`compare` has seen."""
        for named in batches:
            reading = self.readings[named.batch.tobytes()].unsqueeze(0) / self.brightest
            anomaly_map = self.smoothing(reading, self.image_size)
            yield Predictions(image_score(anomaly_map).numpy(), None, anomaly_map.numpy(), None)

    def _read(self, item: Item) -> tuple[bytes, Tensor] | None:
        try:
            pixels = read_pixels(item.path)
        except ValueError:
            return None  # its row says why
        return _key(pixels), self.transform(torch.from_numpy(as_batch(pixels)))

    def _encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors of the shallow half ``(N, D)``, and the self-distance ``(h, w)``."""
        features = self.encoder(image)
        return directions(features.groups[:1])[0, 0], self.self_distance(Reconstruction(features))[0]

    def _mutual(self, key: bytes, tokens: Tensor, known: dict[bytes, Tensor]) -> Tensor | float:
        """Distances to other images ``(h, w)``; 1 where there is no other."""
        others = [other for name, other in known.items() if name != key]
        rows, columns = (side // self.encoder.patch_size for side in self.image_size)
        return mutual_distance(tokens, others).unflatten(0, (rows, columns)) if others else 1.0


def _key(pixels: np.ndarray) -> bytes:
    """Name an image by its content: an image and its copy are one, and none is compared with its copy."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.digest()


def rank(job: Job) -> list[tuple[str, float]]:
    """Sort the table of a job that is done, the most suspicious first, and list their names with their scores.

    Images that cannot be read come last.
    """
    rows = sorted(read_rows(job.table), key=lambda row: math.inf if row.error else -row.raw_score)
    write_rows(job.table, rows)
    return [(row.image, row.raw_score) for row in rows if not row.error]

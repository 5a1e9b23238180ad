# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Commands that write files: sample data, configuration, checkpoints of ours."""

from pathlib import Path

from anomalib_inp.errors import PACKAGE


def sample_data(folder: Path, seed: int = 0, large: bool = False) -> None:
    """Write the sample data: simulated defects on real photographs, in the layout of MVTec AD.

    Args:
        folder: Where to; a new or empty folder.
        seed: Another seed gives other images.
        large: Images of 2048 x 1536 pixels with defects of 0.01 to 1 % of their area, 180 MB of them.
    """
    from anomalib_inp.data.large_sample import write_large_sample_data
    from anomalib_inp.data.sample import CATEGORIES, write_sample_data

    written = (write_large_sample_data if large else write_sample_data)(folder, seed=seed)
    print(f"Sample data with the categories {', '.join(CATEGORIES)}: {written}")


def configs(folder: Path) -> None:
    """Write the configuration files that the documentation calls configs/...: "anomalib-inp configs configs".

    Args:
        folder: Where to; files of the same names there are left as they are.
    """
    import shutil

    # In a wheel they lie in the package, in a checkout beside it.
    source = next(place / "configs" for place in (PACKAGE, PACKAGE.parent) if (place / "configs").is_dir())
    for path in sorted(source.rglob("*.yaml")):
        target = folder / path.relative_to(source)
        if target.exists():
            print(f"{target} is there already, and left as it is")
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        print(target)


def convert(published: Path, checkpoint: Path) -> None:
    """Turn a published checkpoint (model.pth of the reference code) into one that anomalib loads.

    Args:
        published: State dict of the reference code, with its encoder.
        checkpoint: The checkpoint to write; the encoder is written beside it.
    """
    from anomalib_inp.models.convert import convert_reference

    encoder = convert_reference(published, checkpoint)
    print(f"Checkpoint: {checkpoint}\nIts encoder: {encoder} (keep it beside the checkpoint)")

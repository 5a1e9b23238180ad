# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from anomalib_inp.data.file_checks import DataError
from anomalib_inp.data.pseudo_anomaly import (
    Defect,
    PseudoAnomaly,
    cut_out,
    foreground,
    paste,
    perlin_mask,
    read_texture,
    shuffle_patches,
    texture_files,
)
from anomalib_inp.data.sample import write_sample_data


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def images(count: int = 4, height: int = 96, width: int = 128) -> Tensor:
    """Noise, each image around a mean of its own."""
    return (torch.rand(count, 3, height, width) + torch.arange(count).view(-1, 1, 1, 1) / count) / 2


@pytest.fixture
def textures(tmp_path: Path) -> Path:
    """One texture of one colour, in a subfolder."""
    (tmp_path / "dotted").mkdir()
    Image.new("RGB", (30, 40), (200, 100, 50)).save(tmp_path / "dotted" / "one.jpg")
    return tmp_path


def test_only_the_mask_changes() -> None:
    normal = images(12)
    before = normal.clone()
    changed, masks = PseudoAnomaly(probability=1)(normal)
    assert masks.flatten(1).any(dim=1).float().mean() > 0.9
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    differ = (changed != normal).any(dim=1)
    assert not differ[masks == 0].any()
    assert differ[masks == 1].float().mean() > 0.99
    assert torch.equal(normal, before)


def test_the_texture_is_blended_in(textures: Path) -> None:
    normal = images(1)
    changed, masks = PseudoAnomaly(texture_files(textures), probability=1, blend=(0.7, 0.7))(normal)
    # changed = 0.3 * normal + 0.7 * texture; the texture is of one colour, whatever that became
    texture = ((changed - 0.3 * normal) / 0.7)[0][:, masks[0] == 1]
    assert texture.shape[1] > 10
    torch.testing.assert_close(texture, texture[:, :1].expand_as(texture), atol=1e-4, rtol=0)


def test_without_textures_another_image_lends_its_own() -> None:
    normal = torch.stack([torch.full((3, 64, 64), value) for value in (0.2, 0.8)])
    normal += 0.05 * torch.rand(2, 3, 64, 64)
    changes = []
    for _ in range(20):
        changed, masks = PseudoAnomaly(probability=1, blend=(1, 1))(normal)
        changes += [(changed - normal).mean(dim=1)[index][masks[index] == 1].mean() for index in range(2)]
    dark, bright = torch.stack(changes[::2]), torch.stack(changes[1::2])
    assert dark.nanmean() > 0.2  # the other image is brighter
    assert bright.nanmean() < -0.2
    # alone in its batch, an image lends to itself
    _, masks = PseudoAnomaly(probability=1)(normal[:1])
    assert masks.any()


@pytest.mark.parametrize("probability", [0.25, 0.75])
def test_a_share_of_the_images_stays_normal(probability: float) -> None:
    normal = images(400, 16, 16)
    changed, masks = PseudoAnomaly(probability=probability, threshold=-0.5)(normal)
    anomalous = masks.flatten(1).any(dim=1)
    assert anomalous.float().mean().item() == pytest.approx(probability, abs=0.08)
    assert torch.equal(changed[~anomalous], normal[~anomalous])


def test_a_higher_threshold_makes_smaller_masks() -> None:
    shares = []
    for threshold in (0.2, 0.5, 0.7):
        torch.manual_seed(1)
        shares.append(torch.stack([perlin_mask(torch.zeros(3, 96, 128), threshold) for _ in range(40)]).mean().item())
    assert shares == sorted(shares, reverse=True)
    assert 0.01 < shares[1] < 0.2


def test_masks_are_of_many_shapes_and_everywhere() -> None:
    masks = torch.stack([perlin_mask(torch.zeros(3, 65, 97), 0.5) for _ in range(100)])
    assert masks.shape == (100, 65, 97)
    assert masks.flatten(1).any(dim=1).float().mean() > 0.9
    assert len(set(masks.flatten(1).sum(dim=1).tolist())) > 60
    assert (masks.mean(dim=0) > 0).float().mean() > 0.95  # corners too


def test_a_seed_makes_the_same_anomalies() -> None:
    normal, results = images(), []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        results.append(PseudoAnomaly(probability=1)(normal))
    assert all(torch.equal(first, second) for first, second in zip(results[0], results[1], strict=True))
    assert not torch.equal(results[0][1], results[2][1])


def test_shuffled_patches_are_the_same_patches_elsewhere() -> None:
    def patches(image: Tensor) -> list[list[float]]:
        """The 64 patches of 8 x 16 pixels of an image."""
        corners = itertools.product(range(0, 64, 8), range(0, 128, 16))
        return [image[:, top : top + 8, left : left + 16].flatten().tolist() for top, left in corners]

    image = torch.rand(3, 64, 128)
    before, after = patches(image), patches(shuffle_patches(image))
    assert sorted(after) == sorted(before)
    assert sum(ours != other for ours, other in zip(after, before, strict=True)) > 50
    # sizes that no whole patches fill
    for size in ((3, 70, 45), (3, 9, 16), (3, 5, 3)):
        assert shuffle_patches(torch.rand(size)).shape == size


def test_cut_out_by_hand() -> None:
    image, mask = torch.rand(3, 30, 40), torch.zeros(30, 40, dtype=torch.bool)
    mask[10:12, 38] = True
    defect = cut_out(image, mask)
    # four pixels around, as far as the image goes
    assert torch.equal(defect.image, image[:, 6:16, 34:40])
    assert defect.mask.sum() == 2
    assert defect.mask[4:6, 4].all()


def test_a_pasted_defect_keeps_its_colour_and_lands_anywhere() -> None:
    mask = torch.zeros(12, 20)
    mask[3:9, 4:16] = 1
    red = torch.tensor([0.9, 0.1, 0.1]).view(3, 1, 1) * mask + 0.4 * (1 - mask)
    landed = torch.zeros(64, 64)
    areas = []
    for _ in range(200):
        layer, opacity = paste(Defect(red, mask), (64, 64))
        assert layer.shape == (3, 64, 64)
        inside = opacity > 0.9
        assert (layer[0][inside] > layer[1][inside] + 0.2).all()  # lit differently, still red
        landed += opacity
        areas.append((opacity > 0.5).sum().item())
    quarters = (landed[rows, columns] for rows in (slice(16), slice(48, 64)) for columns in (slice(16), slice(48, 64)))
    assert all(quarter.sum() > 100 for quarter in quarters)
    assert min(areas) < 0.6 * 72
    assert max(areas) > 1.6 * 72


def test_a_defect_larger_than_the_image_is_cut() -> None:
    layer, opacity = paste(Defect(torch.rand(3, 90, 90), torch.ones(90, 90)), (32, 48))
    assert layer.shape == (3, 32, 48)
    assert opacity.mean() > 0.5


def test_defects_are_pasted_beside_textures() -> None:
    normal = torch.full((60, 3, 48, 48), 0.2)
    red = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1).expand(3, 10, 10)
    changed, masks = PseudoAnomaly(probability=1, defects=[Defect(red, torch.ones(10, 10))])(normal)
    reddish = ((changed[:, 0] - changed[:, 1]) > 0.3) & (masks > 0)
    share = reddish.flatten(1).any(dim=1).float().mean().item()
    assert share == pytest.approx(0.5, abs=0.2)


def test_foreground_is_what_differs_from_the_border() -> None:
    image = torch.full((3, 60, 80), 0.1) + 0.02 * torch.rand(3, 60, 80)
    image[:, 20:40, 30:60] += torch.tensor([0.0, 0.5, 0.0]).view(3, 1, 1)
    found = foreground(image)
    assert found[20:40, 30:60].all()
    assert found.sum() == 20 * 30
    _, masks = PseudoAnomaly(probability=1, threshold=-0.9, foreground=True)(image.unsqueeze(0))
    assert masks.any()
    assert not masks[0][found == 0].any()


def test_textures_are_checked_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"none in {tmp_path}"):
        texture_files(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        texture_files(tmp_path)


def test_a_thin_defect_is_labelled_where_it_changes_the_image() -> None:
    scratch = torch.zeros(24, 24)
    scratch[4:20, 12] = 1
    bright = Defect(torch.ones(3, 24, 24), scratch)
    changed, masks = PseudoAnomaly(probability=1, defects=[bright])(torch.zeros(100, 3, 64, 64))
    differ = (changed != 0).any(dim=1).flatten(1).any(dim=1)
    assert differ.sum() > 30
    assert masks.flatten(1).any(dim=1)[differ].all()


def test_large_textures_are_read_at_the_size_of_the_image(tmp_path: Path) -> None:
    Image.effect_noise((1200, 900), 60).convert("RGB").save(tmp_path / "large.jpg")
    texture = read_texture(tmp_path / "large.jpg", [96, 128])
    with Image.open(tmp_path / "large.jpg") as whole:
        expected = to_tensor(whole.resize((128, 96), Image.Resampling.BILINEAR))
    assert texture.shape == (3, 96, 128)
    assert (texture - expected).abs().mean() < 0.01


def test_a_texture_that_cannot_be_decoded_is_named(textures: Path) -> None:
    path = textures / "dotted" / "one.jpg"
    Image.effect_noise((200, 200), 60).convert("RGB").save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match=r"texture .*one\.jpg cannot be decoded"):
        PseudoAnomaly(texture_files(textures), probability=1)(images(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 0}, "probability"),
        ({"probability": 1.1}, "probability"),
        ({"blend": (0.5, 0.4)}, "blend"),
        ({"blend": (0, 1)}, "blend"),
        ({"blend": (0.5,)}, "blend"),
        ({"blend": 0.5}, "blend"),
        ({"threshold": 1}, "threshold"),
    ],
)
def test_settings_outside_their_range_are_refused(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PseudoAnomaly(**arguments)


IN_WORKERS = """
import sys, torch
from anomalib.data import MVTecAD
from torch.utils.data import DataLoader
from anomalib_inp.data.pseudo_anomaly import PseudoAnomaly
from anomalib_inp.training.training_data import DerivedDataset

data = MVTecAD(sys.argv[1], "brick", num_workers=0)
data.setup()
dataset = DerivedDataset(data.train_data, pseudo_anomaly=PseudoAnomaly(probability=1))
batches = lambda: DataLoader(dataset, batch_size=4, num_workers=2, collate_fn=dataset.collate_fn)
epoch = lambda: torch.cat([batch.pseudo.gt_mask for batch in batches()]).flatten(1)
runs = []
for seed in (0, 0, 1):
    torch.manual_seed(seed)
    runs.append((epoch(), epoch()))
assert torch.equal(runs[0][0], runs[1][0]) and torch.equal(runs[0][1], runs[1][1])
masks = torch.cat([*runs[0], *runs[2]])
masks = masks[masks.any(dim=1)]
assert len(masks) > 100 and len(masks.unique(dim=0)) == len(masks)
"""


def test_workers_and_epochs_draw_differently_and_runs_of_one_seed_alike(tmp_path: Path) -> None:
    root = write_sample_data(tmp_path / "sample", categories=("brick",))
    subprocess.run([sys.executable, "-c", IN_WORKERS, str(root)], check=True, timeout=300)

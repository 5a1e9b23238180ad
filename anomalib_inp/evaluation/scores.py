# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""Scores of all images, kept: what image metrics and image thresholds are computed from."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat


class ImageScores(Metric):
    """Keeps the scores, labels and categories of all images of all processes."""

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]
    categories: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        for state in ("scores", "labels", "categories"):
            self.add_state(state, [], dist_reduce_fx="cat")
        # A process that is given no image shares a state of the right kind all the same.
        self.update(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long))

    def update(self, scores: Tensor, labels: Tensor, categories: Tensor) -> None:
        """Add scores, labels and the numbers of the categories, each ``(B,)``."""
        self.scores.append(scores.float())
        self.labels.append(labels.to(torch.uint8))
        self.categories.append(categories)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores, the labels (0 or 1) and the numbers of the categories, each ``(N,)``."""
        scores, labels, categories = map(dim_zero_cat, (self.scores, self.labels, self.categories))
        return scores, labels, categories

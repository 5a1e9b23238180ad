# Copyright (C) 2026 the anomalib-inp authors
# SPDX-License-Identifier: Apache-2.0

"""The settings of the papers as values: what each sets, what it needs, and which trainings it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from anomalib.data import AnomalibDataModule

    from anomalib_inp.data import MultiCategory

SettingName = Literal["single_class", "multi_class", "super_multi_class", "few_shot", "zero_shot", "semi_supervised"]
Trainings = dict[str, dict[str, list[str]]]
"""Of each training with one seed: its folder below that of the seed, and arguments of ``MultiCategory``."""


def all_at_once(_data: MultiCategory) -> Trainings:
    """Train once, on all categories."""
    return {"": {}}


def several_data_sets(data: MultiCategory) -> Trainings:
    """Train once, on categories of several data sets."""
    if len({name.rpartition("/")[0] for name in data.modules}) < 2:
        msg = "super_multi_class needs several data sets: --sources."
        raise ValueError(msg)
    return all_at_once(data)


def one_per_category(data: MultiCategory) -> Trainings:
    """Train on each category by itself."""
    if data.trained != data.tested:
        msg = "single_class trains on each category that it tests on: leave out train_on."
        raise ValueError(msg)
    return {name: {"train_on": [name], "test_on": [name]} for name in data.tested}


def on_the_others(data: MultiCategory) -> Trainings:
    """Test on each category after a training on the others; train once where the user says on which."""

    def images(module: AnomalibDataModule) -> tuple[Path, str]:  # the same whatever a category is called
        return Path(module.root).resolve(), str(getattr(module, "category", ""))

    trained = [images(module) for module in data.trained.values()]
    both = [name for name, module in data.tested.items() if images(module) in trained]
    twice = len(trained) - len(set(trained))
    fault = ""
    if data.trained != data.tested:
        fault = f"but {', '.join(both)} would be both: give train_on and test_on, or neither." if both else ""
    elif twice:
        fault = f"but {twice} of them are there under two names."
    elif len(both) < 2:
        fault = f"so it needs two at least, got {both}."
    if fault:
        msg = f"zero_shot tests on categories that are not trained on, {fault}"
        raise ValueError(msg)
    if data.trained != data.tested:
        return all_at_once(data)
    return {name: {"train_on": [other for other in both if other != name], "test_on": [name]} for name in both}


@dataclass(frozen=True)
class Setting:
    """A setting of the papers.

    Attributes:
        name: Its name on the command line.
        trainings: Lists the trainings with one seed; a ValueError says what makes no sense with the data.
        data: Arguments of ``MultiCategory`` that make the setting.
        model: Arguments of the model that make it.
        usual: Arguments of the model that the user may give other values.
        count: The one among them that is a number of images, which the user may change.
        seeded: Argument of the model that takes the seed of the run.
        only_model: The model that has what the setting needs; by default every model has.
        needs: What that is.
        unseen: Whether the categories that are tested are not trained on.
    """

    name: SettingName
    trainings: Callable[[MultiCategory], Trainings] = all_at_once
    data: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    usual: dict[str, Any] = field(default_factory=dict)
    count: str = ""
    seeded: str = ""
    only_model: str = ""
    needs: str = ""
    unseen: bool = False

    @property
    def title(self) -> str:
        """What results are called: the name, with the number of images."""
        return f"{self.name}_{(self.data | self.model)[self.count]}" if self.count else self.name


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("single_class", one_per_category),
        Setting("multi_class"),
        Setting("super_multi_class", several_data_sets),
        Setting("few_shot", data={"shots": 4}, count="shots"),
        Setting("zero_shot", on_the_others, usual={"map": "self_distance"}, unseen=True),
        Setting(
            "semi_supervised",
            model={"labelled_anomalies": 5},
            count="labelled_anomalies",
            seeded="labelled_seed",
            only_model="InpFormerPlusPlus",
            needs="a segmentation head to teach",
        ),
    )
}


def choose_setting(
    name: SettingName, model: str, counts: Mapping[str, int | None], *arguments: Mapping[str, Any]
) -> Setting:
    """Choose a setting.

    Args:
        name: Its name.
        model: Name of the model.
        counts: Numbers of images by the names of their arguments; ``None`` stands for the usual one.
        *arguments: Arguments of the data and of the model, none of which may make a setting.

    Raises:
        ValueError: The setting needs another model, or an argument makes a setting, this one or another.
    """
    setting = SETTINGS[name]
    if setting.only_model not in {"", model}:
        msg = f"{name} needs {setting.needs}: --model {setting.only_model}."
        raise ValueError(msg)
    numbers = {argument: count for argument, count in counts.items() if count is not None}
    given = {argument for part in arguments for argument, value in part.items() if value is not None}
    for other in SETTINGS.values():
        if other is not setting and other.count in given | numbers.keys():
            msg = f"{other.count} is for {other.name}, not for {name}."
            raise ValueError(msg)
    sets = {**setting.data, **setting.model, **numbers}
    if taken := [f"{argument}={value}" for argument, value in sets.items() if argument in given]:
        msg = f"{name} sets {', '.join(taken)} itself: leave it out."
        raise ValueError(msg)
    data, model_args = ({argument: sets[argument] for argument in part} for part in (setting.data, setting.model))
    return replace(setting, data=data, model=model_args)

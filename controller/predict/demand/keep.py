"""Where trained models are kept: a directory a version, checked before it is believed.

    DIRECTORY/FAMILY/VERSION/model.npz       trees and networks; loading them executes nothing
    DIRECTORY/FAMILY/VERSION/about.json      what it learned from, and the file's SHA-256

A version is written beside and renamed into its place, so that it is there whole or not at
all. Whoever reads takes the newest that is whole, and so falls back to the one before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from controller.predict.demand import global_model
from controller.predict.demand.global_model import GlobalModel
from controller.predict.demand.series import Metric, Panel

log = logging.getLogger(__name__)

#: Versions of each family that are kept.
KEPT = 3
_MODEL, _ABOUT = "model.npz", "about.json"
_WRITING = ".writing-"


@dataclass(frozen=True, slots=True)
class About:
    """What a version is: when it was made and what it learned from (Unix s), and how it did on
    the days that were held out (pinball loss over all quantiles, in units of the scale)."""

    family: str
    made: int
    first: int
    last: int
    series: int
    loss: float
    loss_seasonal_naive: float
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Kept:
    """A model, and what it is."""

    model: GlobalModel
    about: About


class ModelStore:
    """The models in `directory`, which is made where it is not there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def put(self, model: GlobalModel, about: About) -> About:
        """Keep `model` as the newest of its family; forget what is older than KEPT versions."""
        family = self._directory / model.family
        family.mkdir(exist_ok=True, mode=0o700)
        data = model.dump()
        complete = About(**{**asdict(about), "sha256": hashlib.sha256(data).hexdigest()})
        name = f"{about.made:012d}"
        writing = family / f"{_WRITING}{name}"
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(mode=0o700)
        _write(writing / _MODEL, data)
        _write(writing / _ABOUT, json.dumps(asdict(complete), indent=1).encode())
        place = family / name
        if place.exists():
            shutil.rmtree(place)
        writing.rename(place)
        for old in self._versions(model.family)[KEPT:]:
            shutil.rmtree(old)
        return complete

    def newest(self, family: str) -> Kept | None:
        """The newest version that is whole, or None. Those that are not are logged."""
        for version in self._versions(family):
            try:
                return _read(version, family)
            except (OSError, ValueError, TypeError) as error:
                log.error(
                    "a model is not whole; the one before it is used",
                    extra={"path": str(version), "cause": str(error)},
                )
        return None

    def _versions(self, family: str) -> list[Path]:
        place = self._directory / family
        if not place.is_dir():
            return []
        found = [path for path in place.iterdir() if not path.name.startswith(_WRITING)]
        return sorted(found, reverse=True)


def family_of(panel: Panel) -> str:
    """The family under which a panel's model is kept."""
    return Metric(panel.metric).family


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(version: Path, family: str) -> Kept:
    about = About(**json.loads((version / _ABOUT).read_text(encoding="utf-8")))
    data = (version / _MODEL).read_bytes()
    found = hashlib.sha256(data).hexdigest()
    if found != about.sha256:
        raise ValueError(f"SHA-256 is {found}, and {about.sha256} was written: it was damaged")
    model = global_model.load(data)
    if model.family != family:
        raise ValueError(f"is a model of {model.family}, not of {family}")
    return Kept(model, about)

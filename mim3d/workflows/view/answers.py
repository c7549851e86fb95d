"""What the page may ask for. Addresses hold numbers of the catalogue, never a path."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mim3d.config.view import ViewConfig
from mim3d.foundation.documents import bounded
from mim3d.foundation.errors import UserError
from mim3d.pages.viewer.assets import KINDS, asset
from mim3d.workflows.view.catalogue import Catalogue, Layer, SeenCase, table_row
from mim3d.workflows.view.reading import Labels, Reader
from mim3d.workflows.view.roots import Roots
from mim3d.workflows.view.sending import (
    DIFFERENCE,
    as_nifti,
    difference,
    legend,
    overlaps,
    thinned,
)

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PNG = 64 * 2**20


@dataclass(frozen=True)
class Answer:
    """What goes back to the page.

    Attributes:
        body: the bytes.
        kind: the content type.
        facts: further headers.
    """

    body: bytes
    kind: str
    facts: tuple[tuple[str, str], ...] = ()


class Missing(Exception):
    """A number that the catalogue does not have."""


class Answers:
    """Answers questions about one catalogue; one at a time where volumes are read.

    Args:
        catalogue: what was found.
        roots: what may be read.
        config: limits.
    """

    def __init__(self, catalogue: Catalogue, roots: Roots, config: ViewConfig) -> None:
        self._catalogue = catalogue
        self._cases = list(catalogue.cases.values())
        self._roots = roots
        self._reader = Reader(roots, config.read)
        self._most = max(1.0, config.view.max_mvoxels * 1e6)
        self._lock = threading.Lock()
        self.volumes_sent = 0
        self._routes: tuple[tuple[re.Pattern[str], Callable[..., Answer]], ...] = tuple(
            (re.compile(pattern), answer)
            for pattern, answer in (
                (r"catalogue\.json", self._list),
                (r"case/(\d{1,7})\.json", self._case),
                (r"image/(\d{1,7})/(\d{1,4})\.nii", self._image),
                (r"labels/(\d{1,7})\.json", self._legend),
                (r"labels/(\d{1,7})\.nii", self._labels),
                (r"compare/(\d{1,7})/(\d{1,7})\.json", self._compare),
                (r"compare/(\d{1,7})/(\d{1,7})\.nii", self._difference),
                (r"picture/(\d{1,7})\.png", self._picture),
            )
        )

    def to(self, question: str) -> Answer | None:
        """The answer to an address below the token; None where there is none.

        Raises:
            UserError: what it asks for cannot be read, or leads out of the given paths.
        """
        name = question or "index.html"
        if name in KINDS:
            return Answer(*asset(name))
        for pattern, answer in self._routes:
            if found := pattern.fullmatch(question):
                try:
                    with self._lock:
                        return answer(*map(int, found.groups()))
                except Missing:
                    return None
        return None

    def _list(self) -> Answer:
        found = self._catalogue
        panels = [{"run": p.run, "kind": p.kind, "title": p.title} for p in found.panels]
        return _json({"cases": found.summary(), "panels": panels, "notes": found.notes})

    def _case(self, number: int) -> Answer:
        case = _at(self._cases, number)
        images, overlays = [], []
        # Label maps first: a prediction is held against them.
        layers = sorted(case.layers, key=lambda n: self._catalogue.layers[n].role == "prediction")
        for layer_number in layers:
            layer = self._catalogue.layers[layer_number]
            if layer.role == "image":
                header = self._reader.header(layer)
                images += [
                    {**header, "layer": layer_number, "channel": channel,
                     "name": " ".join(part for part in (layer.name, name) if part)}
                    for channel, name in enumerate(header.pop("channels"))
                ]  # fmt: skip
            else:
                overlays.append({"layer": layer_number, "role": layer.role, "name": layer.name})
        scores = {source: [table_row(s) for s in rows] for source, rows in case.scores.items()}
        content = {"name": case.name, "part": case.part, "images": images, "overlays": overlays}
        return _json({**content, "scores": scores, "pairs": self._pairs(case)})

    def _pairs(self, case: SeenCase) -> list[dict[str, Any]]:
        """Each prediction against the first label map."""
        layers = [(number, self._catalogue.layers[number]) for number in case.layers]
        truths = [number for number, layer in layers if layer.role == "label"]
        against = ""
        if len(truths) > 1:
            against = f" against {self._catalogue.layers[truths[0]].name}"
        return [
            {"reference": truths[0], "prediction": number, "name": f"{layer.name}{against}"}
            for number, layer in layers if truths and layer.role == "prediction"
        ]  # fmt: skip

    def _image(self, number: int, channel: int) -> Answer:
        layer = self._layer(number, of_image=True)
        volume = self._reader.image(layer)
        return self._sent(_at(volume.voxels, channel), volume.affine)

    def _legend(self, number: int) -> Answer:
        return _json({"classes": legend(self._label_map(number))})

    def _labels(self, number: int) -> Answer:
        labels = self._label_map(number)
        return self._sent(labels.indices, labels.volume.affine, of_labels=True)

    def _compare(self, reference: int, prediction: int) -> Answer:
        return _json({"rows": overlaps(self._label_map(reference), self._label_map(prediction))})

    def _difference(self, reference: int, prediction: int) -> Answer:
        truth = self._label_map(reference)
        found = difference(truth, self._label_map(prediction))
        rows = [
            {"index": n, "value": n, "name": name, "colour": rgb}
            for n, (name, rgb) in enumerate(DIFFERENCE, start=1)
        ]
        answer = self._sent(found, truth.volume.affine, of_labels=True)
        return Answer(answer.body, answer.kind, (*answer.facts, ("X-Classes", json.dumps(rows))))

    def _picture(self, number: int) -> Answer:
        path = self._roots.check(_at(self._catalogue.panels, number).path)
        content = bounded(path, LARGEST_PNG)
        if not content.startswith(PNG):
            raise UserError(f"`{path.name}` is no PNG picture", code="no-picture")
        return Answer(content, "image/png")

    def _layer(self, number: int, *, of_image: bool) -> Layer:
        layer: Layer = _at(self._catalogue.layers, number)
        if (layer.role == "image") != of_image:
            raise Missing
        return layer

    def _label_map(self, number: int) -> Labels:
        return self._reader.labels(self._layer(number, of_image=False))

    def _sent(self, voxels: Any, affine: Any, *, of_labels: bool = False) -> Answer:
        voxels, affine, steps = thinned(voxels, affine, self._most)
        self.volumes_sent += 1
        facts = (("X-Thinned", "x".join(map(str, steps))),) if max(steps) > 1 else ()
        content = as_nifti(voxels, affine, of_labels=of_labels)
        return Answer(content, "application/octet-stream", facts)


def _at(items: Any, number: int) -> Any:
    """An entry by its number.

    Raises:
        Missing: there are fewer.
    """
    if number >= len(items):
        raise Missing
    return items[number]


def _json(content: Any) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode(), "application/json")

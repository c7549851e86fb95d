"""What outputs mean, and how rows become a volume."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mim3d.data.regions import SCHEMES
from mim3d.inference.outputs import LabelSink, ProbabilitySum, background_of, labels_of, largest
from mim3d.inference.segmenter import Segmenter

SOFTMAX = Segmenter(torch.nn.Identity(), (8, 8, 8))
REGIONS = Segmenter(torch.nn.Identity(), (8, 8, 8), regions=SCHEMES["brats2021"])
BOX = (slice(2, 13), slice(0, 13), slice(3, 10))
SHAPE = (15, 13, 11)


@pytest.mark.parametrize("outputs", [2, 14, 300])
def test_the_largest_is_argmax_and_of_equals_the_first(outputs: int) -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randint(0, 5, (outputs, 11, 13, 7), generator=random).float()

    indices = largest(values)

    assert torch.equal(indices.long(), values.argmax(dim=0))
    assert indices.dtype == (torch.uint8 if outputs <= 256 else torch.int16)


def test_weights_of_a_voxel_do_not_change_its_label() -> None:
    logits = torch.randn((3, 11, 13, 7), generator=torch.Generator().manual_seed(1))
    weights = torch.rand((11, 13, 7)) + 0.01

    for model in (SOFTMAX, REGIONS):
        assert torch.equal(labels_of(model, logits), labels_of(model, logits * weights))
    one = labels_of(SOFTMAX, logits[:1])
    assert torch.equal(one.bool(), logits[0] > 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_rows_of_labels_fill_their_box_of_the_volume(axis: int) -> None:
    logits = torch.randn((3, 11, 13, 7), generator=torch.Generator().manual_seed(1))
    sink = LabelSink(SOFTMAX, BOX, SHAPE, axis)

    for first, count in ((0, 3), (3, 1), (4, logits.shape[1 + axis] - 4)):
        place = list(BOX)
        start = place[axis].start + first
        place[axis] = slice(start, start + count)
        sink.put(tuple(place), logits.narrow(1 + axis, first, count))

    expected = np.zeros(SHAPE, np.uint8)
    expected[BOX] = logits.argmax(dim=0)
    assert np.array_equal(sink.volume(), expected)
    assert sink.volume().dtype == np.uint8


@pytest.mark.parametrize("model", [SOFTMAX, REGIONS], ids=["softmax", "regions"])
def test_probabilities_of_passes_are_averaged_and_the_rest_is_background(model: Segmenter) -> None:
    random = torch.Generator().manual_seed(1)
    passes = [torch.randn((3, 11, 13, 7), generator=random) for _ in range(2)]
    total = ProbabilitySum(model, SHAPE)

    for logits in passes:
        total.put(BOX, logits)
        total.close(BOX)

    each = [x.softmax(0) if model is SOFTMAX else x.sigmoid() for x in passes]
    expected = np.zeros((3, *SHAPE))
    expected[0] = model is SOFTMAX
    expected[(slice(None), *BOX)] = torch.stack(each).mean(0)
    assert np.allclose(total.mean(), expected, atol=1e-6)


def test_background_for_certain_has_a_probability_of_one() -> None:
    some = torch.zeros((3, 1, 1, 1))

    assert background_of(SOFTMAX, some).softmax(0).tolist() == [1, 0, 0]
    assert background_of(REGIONS, some).sigmoid().max() < 1e-30
    assert background_of(SOFTMAX, some[:1]).sigmoid() < 1e-30

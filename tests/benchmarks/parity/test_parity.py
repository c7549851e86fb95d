"""The parity benchmark runs, and finds what it claims, on narrow networks."""

from __future__ import annotations

import pytest
from foreign_networks import parity_module

parity = parity_module("parity")
NAMES = ["MONAI UNETR, two axes", "SelfMedMAE MAE", "facebookresearch/mae, inflated 16 deep"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pair_is_compared_tap_by_tap(name: str) -> None:
    pair = next(one for one in parity.pairs() if one.name == name)

    row = parity.compared(pair, 24, 2, 2)

    assert len(row["taps"]) == (pair.depth or 2)
    assert max(*row["taps"], row["last"], row["logits"] or 0) < 1e-4
    assert (row["logits"] is not None) == ("UNETR" in name)
    assert name in parity.table([row])

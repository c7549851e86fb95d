"""Which tensors of another program's checkpoint are taken, and what is told of the others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mim3d.models.foreign_tables import Refusal, plain_tensors


@pytest.mark.parametrize(
    ("content", "section", "why"),
    [
        ({"a": torch.zeros(2).expand(10**12, 2)}, "", "claims more numbers than it has"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "", "type torch.complex64"),
        ({"a": torch.eye(3).to_sparse()}, "", "no plain tensor"),
        ({"a": torch.empty(3, device="meta")}, "", "no plain tensor"),
        ({"x": {"a": torch.ones(1)}, "y": {"a": torch.ones(1)}}, "", "which of its tables"),
        ({"x": {"a": torch.ones(1)}}, "z", "no table `z`; there are `x`"),
        ({"epoch": 3}, "", "which of its tables"),
        ([torch.ones(1)], "", "no table of tensors"),
        ({"state_dict": {"a": 1}}, "", "holds no tensors"),
    ],
)
def test_what_is_no_plain_tensor_of_one_table_is_refused(
    content: Any, section: str, why: str
) -> None:
    with pytest.raises(Refusal, match=why):
        plain_tensors(content, section)


def test_a_table_within_tables_is_found_by_its_name_and_shared_numbers_are_parted() -> None:
    shared = torch.arange(4.0)
    content = {"student": {"x": torch.ones(1)}, "teacher": {"backbone": {"a": shared, "b": shared,
               "sub": {"c": shared[1:3]}, 3: shared, "name": "vit"}}}  # fmt: skip

    found = plain_tensors(content, "teacher.backbone").tensors

    assert found.keys() == {"a", "b", "sub.c"}
    assert torch.equal(found["sub.c"], torch.tensor([1.0, 2.0]))
    assert len({tensor.untyped_storage().data_ptr() for tensor in found.values()}) == 3


def test_tensors_that_are_not_taken_are_reported_by_their_place() -> None:
    one = torch.ones(1)
    content = {
        "optimizer": {"state": {0: {"exp_avg": one.clone(), "exp_avg_sq": one.clone()}}},
        "epoch": 3,
        "state_dict": {
            "a": one,
            "layers": [one.clone(), {"x": (one.clone(), 2)}],
            "blocks": {0: one.clone(), ("a", 1): one.clone(), "b": one.clone()},
            "name": "vit",
        },
    }

    found = plain_tensors(content, "")

    assert found.tensors.keys() == {"a", "blocks.b"}
    assert found.left == {"optimizer": 2, "layers": 2, "blocks.[0]": 1, "blocks.[a tuple]": 1}


def test_tensors_beside_a_section_are_reported_and_a_list_within_itself_ends() -> None:
    endless: list[Any] = [torch.ones(2)]
    endless.append(endless)
    content = {"t": {"b": {"w": torch.ones(1)}, "h": {"w": torch.ones(1)}}, "s": endless}

    assert plain_tensors(content, "t.b").left == {"s": 1, "t.h": 1}


def test_two_tensors_of_one_name_are_refused() -> None:
    with pytest.raises(Refusal, match=r"two of its tensors are called `a\.b`"):
        plain_tensors({"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, "")

from __future__ import annotations

import numpy as np
import pytest

from mim3d.data.classes import IGNORE_INDEX, ClassTable
from mim3d.foundation.errors import UserError


def test_values_that_skip_numbers_become_consecutive_indices_and_back():
    table = ClassTable.from_values([8, 1, 7, 9, 0], {7: "lesion"})
    labels = np.array([[0, 1, 7], [8, 9, 9]])

    indices = table.to_index(labels)

    # Ordered by value, background first: 0, 1, 7, 8, 9.
    assert table.values == (0, 1, 7, 8, 9)
    assert table.names == ("background", "label 1", "lesion", "label 8", "label 9")
    assert indices.dtype == np.uint8
    assert indices.tolist() == [[0, 1, 2], [3, 4, 4]]
    assert table.to_value(indices).tolist() == labels.tolist()
    assert table.to_value(indices).dtype == np.uint8


def test_values_beyond_a_byte_come_back_in_sixteen_bits():
    table = ClassTable.from_values([0, 300, 65535])

    back = table.to_value(table.to_index(np.array([65535, 0, 300])))

    assert back.dtype == np.uint16
    assert back.tolist() == [65535, 0, 300]


def test_a_foreign_value_is_an_error_that_counts_its_voxels():
    table = ClassTable.from_values([0, 1, 2])

    with pytest.raises(UserError, match="255 in 2 voxels of 6; the 3 classes are 0 to 2") as caught:
        table.to_index(np.array([0, 1, 255, 2, 255, 0]))
    assert caught.value.code == "foreign-label"

    with pytest.raises(UserError, match="-1 in 1 voxels"):
        table.to_index(np.array([-1, 0]))
    with pytest.raises(UserError, match="70000 in 1 voxels"):
        table.to_index(np.array([70000, 0]))


def test_the_ignore_value_has_an_index_of_its_own_and_returns():
    table = ClassTable.from_values([0, 1, 3], ignore_value=3)

    indices = table.to_index(np.array([0, 1, 3]))

    assert table.values == (0, 1)
    assert indices.tolist() == [0, 1, IGNORE_INDEX]
    assert table.to_value(indices).tolist() == [0, 1, 3]


def test_a_table_survives_json():
    table = ClassTable.from_values([0, 4, 2], {4: "ET"}, ignore_value=9)

    assert ClassTable.from_json(table.as_json()) == table


def test_a_stored_table_of_two_values_with_one_name_is_still_read():
    """Sources with such names are refused today; stores of earlier ones open."""
    table = ClassTable.from_values([1, 2], {1: "tumour", 2: "tumour"})

    assert ClassTable.from_json(table.as_json()).names == ("background", "tumour", "tumour")


def test_more_classes_than_a_byte_counts_are_refused():
    assert ClassTable.from_values(range(255)).count == 255
    with pytest.raises(UserError, match="256 classes are more than the 255"):
        ClassTable.from_values(range(256))


@pytest.mark.parametrize("values", [(1, 2), (0, 2, 1), (0, 1, 1), ()])
def test_tables_out_of_order_or_without_background_are_refused(values):
    with pytest.raises(UserError, match="background"):
        ClassTable(values, ("a",) * len(values), ((0, 0, 0),) * len(values))


def test_the_first_twenty_classes_have_different_colours():
    table = ClassTable.from_values(range(21))

    assert table.colours[0] == (0, 0, 0)
    assert len(set(table.colours)) == 21

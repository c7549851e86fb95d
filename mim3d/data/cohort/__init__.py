"""The list of cases of a source: who, which files, which list. No volume is opened here."""

from mim3d.data.cohort.cases import Case, Cohort
from mim3d.data.cohort.lists import apply_split, hash_ids, without_class
from mim3d.data.cohort.reading import read_cohort

__all__ = ["Case", "Cohort", "apply_split", "hash_ids", "read_cohort", "without_class"]

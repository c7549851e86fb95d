"""The prepared cohort on disk: one HDF5 file and one sidecar a case, and a manifest."""

from mim3d.data.store.entry import StoreEntry
from mim3d.data.store.folder import Store, open_store
from mim3d.data.store.joined import JoinedStore, open_stores
from mim3d.data.store.layout import FORMAT, file_name
from mim3d.data.store.opened import StoreCase
from mim3d.data.store.writing import PreparedCase, quantise, write_case

__all__ = [
    "FORMAT",
    "JoinedStore",
    "PreparedCase",
    "Store",
    "StoreCase",
    "StoreEntry",
    "file_name",
    "open_store",
    "open_stores",
    "quantise",
    "write_case",
]

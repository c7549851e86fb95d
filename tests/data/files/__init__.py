"""Tests of `mim3d.data.files`."""

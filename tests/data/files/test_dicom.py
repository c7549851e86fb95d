from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

import mim3d
from mim3d.data.files import ReadConfig, list_series, read_geometry, read_volume
from mim3d.data.files import dicom as dicom_module
from mim3d.data.files.dicom import DicomReader
from mim3d.foundation.errors import VolumeError

from .making import codes, dicom_folder, dicom_slice, quietly, scan

AFFINE = np.array([[0.8, 0, 0, -17.4], [0, 1.2, 0, -1.9], [0, 0, 2.5, 31.25], [0, 0, 0, 1]])
"""Of `dicom_folder`: rows and columns run left and back, so RAS+ begins at the far corner."""


def test_a_series_is_one_volume_that_agrees_with_simpleitk(tmp_path):
    stored = dicom_folder(tmp_path)

    volume = read_volume(tmp_path)

    assert (volume.voxels[0] == stored[::-1, ::-1]).all()
    assert volume.voxels.dtype == np.int16
    assert np.allclose(volume.affine, AFFINE)
    assert volume.notes == ()
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames([str(path) for path in sorted(tmp_path.iterdir())])
    image = reader.Execute()
    x, y, z = image.TransformIndexToPhysicalPoint((2, 3, 4))
    voxel = np.linalg.solve(volume.affine, [-x, -y, z, 1])[:3].round().astype(int)
    assert volume.voxels[0][tuple(voxel)] == image[2, 3, 4]


def test_positions_decide_whatever_names_say(tmp_path):
    stored = dicom_folder(tmp_path)
    files = sorted(tmp_path.iterdir())
    for k, path in enumerate(files):
        path.rename(tmp_path / f"slice{(k * 2) % 5}")

    assert (read_volume(tmp_path).voxels[0] == stored[::-1, ::-1]).all()


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path):
    stored = scan((9, 8, 5))
    tmp_path.mkdir(exist_ok=True)
    for k in range(5):
        raw = dicom_slice(stored[:, :, k].T, (11, -6.5, 2.5 * k), slope=1 + k / 4, intercept=-k)
        (tmp_path / f"{k}").write_bytes(raw)

    volume = read_volume(tmp_path)

    expected = stored * (1 + np.arange(5) / 4) - np.arange(5)
    assert (volume.voxels[0] == expected[::-1, ::-1].astype("f4")).all()


def test_spare_bits_are_cut_off_and_the_sign_kept(tmp_path):
    stored = scan((9, 8, 5)) % 2048
    dirty = (stored | (np.indices(stored.shape)[0] % 16 << 12)).astype("u2").view("i2")
    for k in range(5):
        for signed, name in ((0, "unsigned"), (1, "signed")):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = dirty[:, :, k].T if not signed else (dirty[:, :, k].T | 2048)
            raw = dicom_slice(pixels, (0, 0, k), bits=12, high_bit=11, signed=signed)
            (tmp_path / name / f"{k}").write_bytes(raw)

    assert (read_volume(tmp_path / "unsigned").voxels[0] == stored[::-1, ::-1]).all()
    assert (read_volume(tmp_path / "signed").voxels[0] == stored[::-1, ::-1] - 2048).all()


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_compressed_pixels_are_decoded_and_not_inverted(tmp_path, photometric):
    stored = dicom_folder(tmp_path, rle=True, photometric=photometric, intercept="-24", slope="1")

    volume = quietly(tmp_path)

    assert (volume.voxels[0] == stored[::-1, ::-1] - 24.0).all()


@pytest.mark.parametrize("part", [0.6, 0.95, 0.999])
def test_a_cut_compressed_slice_is_refused(tmp_path, part):
    dicom_folder(tmp_path, rle=True)
    path = tmp_path / "IM004.dcm"
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * part)])

    with pytest.raises(VolumeError, match="cut short"):
        read_volume(tmp_path)


def test_compressed_pixels_of_another_size_are_refused(tmp_path):
    dicom_folder(tmp_path, rle=True, rows=16)

    with pytest.raises(VolumeError):
        read_volume(tmp_path)


def test_a_frame_of_some_bytes_cannot_declare_a_huge_slice(tmp_path):
    dicom_folder(tmp_path, rle=True, rows=30_000)
    for path in tmp_path.iterdir():
        raw = path.read_bytes()
        columns = struct.pack("<HH2sHH", 0x0028, 0x0011, b"US", 2, 9)
        path.write_bytes(raw.replace(columns, columns[:-2] + struct.pack("<H", 30_000)))

    with pytest.raises(VolumeError, match="compressed bytes") as caught:
        read_volume(tmp_path, ReadConfig(max_gib=100))

    assert caught.value.code == "more-declared"


def test_slices_whose_rescale_does_nothing_may_lack_it(tmp_path):
    stored = dicom_folder(tmp_path)
    raw = dicom_slice(stored[:, :, 2].T, (11, -6.5, 31.25 + 5), slope="1", intercept="0")
    (tmp_path / "IM002.dcm").write_bytes(raw)

    volume = read_volume(tmp_path)

    assert volume.voxels.dtype == np.int16
    assert (volume.voxels[0] == stored[::-1, ::-1]).all()


def test_jpeg2000_agrees_with_simpleitk(shared):
    folder = shared / "data/samples/ct_dicom/series"

    volume = read_volume(folder)

    for path in sorted(folder.iterdir())[::7]:
        image = SimpleITK.ReadImage(str(path))
        z = (image.GetOrigin()[2] - volume.affine[2, 3]) / volume.affine[2, 2]
        expected = SimpleITK.GetArrayFromImage(image)[0].T[::-1, ::-1]
        assert (volume.voxels[0, :, :, round(z)] == expected).all()


def test_monochrome1_is_noted_and_not_inverted(tmp_path):
    stored = dicom_folder(tmp_path, photometric="MONOCHROME1", intercept="-1024", slope="1")

    volume = quietly(tmp_path)

    assert codes(volume) == {"monochrome1"}
    assert (volume.voxels[0] == stored[::-1, ::-1] - 1024.0).all()


def test_other_files_are_ignored_and_noted(tmp_path):
    dicom_folder(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "Thumbs.db").write_bytes(bytes(500))

    assert codes(quietly(tmp_path)) == {"dicom-stray"}


def test_an_identical_slice_is_dropped_and_noted(tmp_path):
    stored = dicom_folder(tmp_path)
    (tmp_path / "again.dcm").write_bytes((tmp_path / "IM002.dcm").read_bytes())

    volume = quietly(tmp_path)

    assert codes(volume) == {"duplicate-slice"}
    assert volume.shape == stored.shape


def test_one_slice_takes_its_thickness_and_is_noted(tmp_path):
    dicom_folder(tmp_path, 1)

    for path in (tmp_path, tmp_path / "IM000.dcm"):
        volume = quietly(path)
        assert codes(volume) == {"one-slice"}
        assert volume.spacing_mm == pytest.approx((0.8, 1.2, 2.5))


def missing(folder):
    (folder / "IM002.dcm").unlink()


def other_duplicate(folder):
    (folder / "x.dcm").write_bytes(dicom_slice(scan((9, 8)).T, (11, -6.5, 31.25 + 5)))


def uneven(folder):
    (folder / "IM002.dcm").write_bytes(dicom_slice(scan((9, 8)).T, (11, -6.5, 31.25 + 5.4)))


def sliding(folder):
    for k in range(5):
        raw = dicom_slice(scan((9, 8)).T, (11, -6.5 + 0.5 * k, 31.25 + 2.5 * k))
        (folder / f"IM{k:03d}.dcm").write_bytes(raw)


def sideways(folder):
    (folder / "IM002.dcm").write_bytes(dicom_slice(scan((9, 8)).T, (13, -6.5, 31.25 + 5)))


def two_series(folder):
    dicom_folder(folder / "more", series="1.2.4")
    for k, path in enumerate(sorted((folder / "more").iterdir())):
        path.rename(folder / f"other{k}.dcm")


def changed(**changes):
    def change(folder):
        raw = dicom_slice(scan((9, 8)).T, (11, -6.5, 31.25 + 5), **changes)
        (folder / "IM002.dcm").write_bytes(raw)

    return change


def size(folder):
    (folder / "IM002.dcm").write_bytes(dicom_slice(scan((8, 8)).T, (11, -6.5, 31.25 + 5)))


def cut(count):
    def change(folder):
        path = folder / "IM004.dcm"
        path.write_bytes(path.read_bytes()[:count])

    return change


REJECTED = {
    "missing slice": missing,
    "another slice at one place": other_duplicate,
    "uneven": uneven,
    "tilted gantry": sliding,
    "one slice sideways": sideways,
    "two series": two_series,
    "orientation": changed(orientation="0\\1\\0\\0\\0\\1"),
    "size": size,
    "pixel spacing": changed(spacing="1.2\\0.9"),
    "spacing zero": changed(spacing="0\\0.8"),
    "spacing none": changed(spacing=None),
    "spacing text": changed(spacing="1.2\\wide"),
    "orientation none": changed(orientation=None),
    "not orthogonal": changed(orientation="1\\0\\0\\0.5\\0.9\\0"),
    "not of unit length": changed(orientation="2\\0\\0\\0\\1\\0"),
    "colour": changed(samples=3, photometric="RGB"),
    "palette": changed(photometric="PALETTE COLOR"),
    "rows lie": changed(rows=4000),
    "frames": changed(frames="2"),
    "bits": changed(bits=17),
    "slope 0": changed(slope="0", intercept="0"),
    "slope nan": changed(slope="nan", intercept="0"),
    "slope alone": changed(slope="2"),
    "intercept alone": changed(intercept="-1024"),
    "one slice rescaled": changed(slope="2", intercept="0"),
    "other bits": changed(bits=12, high_bit=11),
    "other sign": changed(signed=0),
    "unknown encoding": changed(syntax="1.2.840.10008.1.2.4.100"),
    "compressed in name only": changed(syntax="1.2.840.10008.1.2.5"),
    "deflated": changed(syntax="1.2.840.10008.1.2.1.99"),
    "cut pixels": cut(-7),
    "cut header": cut(300),
    "cut to nothing": cut(0),
}


@pytest.mark.parametrize("fault", REJECTED)
def test_slices_that_make_no_volume_are_refused(tmp_path, fault):
    dicom_folder(tmp_path)
    REJECTED[fault](tmp_path)

    with pytest.raises(VolumeError) as caught:
        read_volume(tmp_path)

    assert caught.value.where == str(tmp_path)
    assert "PLANTED" not in f"{caught.value} {caught.value.remedy}"


def test_a_rounding_of_positions_is_no_gap(tmp_path):
    stored = dicom_folder(tmp_path)
    raw = dicom_slice(stored[:, :, 2].T, (11, -6.5, 31.25 + 5.002))
    (tmp_path / "IM002.dcm").write_bytes(raw)

    assert read_volume(tmp_path).notes == ()


def test_a_missing_slice_of_a_very_fine_series_is_found(tmp_path):
    for k in (0, 1, 2, 4, 5):
        raw = dicom_slice(scan((9, 8)).T, (0, 0, 0.05 * k), spacing="0.05\\0.05")
        (tmp_path / f"{k}").write_bytes(raw)

    with pytest.raises(VolumeError, match="mm apart"):
        read_volume(tmp_path)


def test_several_series_are_listed_and_one_is_chosen_by_number_or_uid(tmp_path):
    stored = dicom_folder(tmp_path)
    two_series(tmp_path)

    listed = list_series(tmp_path)

    assert [(each.uid, each.slices, each.modality) for each in listed] == [
        ("1.2.3", 5, "CT"),
        ("1.2.4", 5, "CT"),
    ]
    for choice in ("1", "2", "1.2.4"):
        volume = read_volume(tmp_path, ReadConfig(series=choice))
        assert (volume.voxels[0] == stored[::-1, ::-1]).all()
    for choice in (None, "3", "1.2.5"):
        with pytest.raises(VolumeError, match="series") as caught:
            read_volume(tmp_path, ReadConfig(series=choice))
        assert "1.2.3" in (caught.value.remedy or "")


def test_geometry_is_read_without_pixels(tmp_path):
    dicom_folder(tmp_path)

    geometry = read_geometry(tmp_path)

    assert (geometry.shape, geometry.channels, geometry.modality) == ((9, 8, 5), 1, "CT")
    assert geometry.spacing_mm == pytest.approx((0.8, 1.2, 2.5))


def test_a_folder_without_slices_says_so(tmp_path):
    dicom_folder(tmp_path / "below")

    with pytest.raises(VolumeError, match="further folders"):
        read_volume(tmp_path)


def test_the_limit_holds_before_pixels_are_decoded(tmp_path):
    dicom_folder(tmp_path)

    with pytest.raises(VolumeError, match="limit"):
        read_volume(tmp_path, ReadConfig(max_gib=1e-7))


# The reading process


READY = "import sys; sys.stdout.buffer.write((2).to_bytes(8, 'big') + b'{}'); sys.stdout.flush();"
FATES = {
    "segfaults": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
    "aborts": ("import os; os.abort()", "signal 6"),
    "exits": ("raise SystemExit(3)", "exit code 3"),
    "hangs": ("import time; time.sleep(60)", "took longer"),
    "hangs once it is ready": (READY + "import time; time.sleep(60)", "took longer"),
    "exits once it is ready": (READY + "sys.stdin.buffer.read(8)", "exit code 0"),
    "babbles": ("import sys; sys.stdout.write('x' * 100)", "reader process"),
    "says nonsense": (READY.replace("{}", "[]") + "sys.stdin.read()", "no sensible answer"),
}


@pytest.mark.parametrize("fate", FATES)
def test_whatever_becomes_of_the_reading_process_is_an_ordinary_error(tmp_path, monkeypatch, fate):
    dicom_folder(tmp_path)
    program, words = FATES[fate]
    reader = DicomReader([sys.executable, "-I", "-c", program], seconds=2.0, start_seconds=2.0)
    monkeypatch.setattr(dicom_module, "_reader", reader)

    for _ in range(2):
        with pytest.raises(VolumeError, match=words) as caught:
            read_volume(tmp_path)
        assert caught.value.code in ("reader-died", "reader-time")
    reader.close()


def test_after_a_death_the_next_series_gets_a_fresh_process(tmp_path):
    stored = dicom_folder(tmp_path)
    read_volume(tmp_path)
    process = dicom_module._reader._process
    assert process is not None

    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert (read_volume(tmp_path).voxels[0] == stored[::-1, ::-1]).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is Linux's")
def test_a_reader_that_eats_memory_meets_its_limit():
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]);"
        "from mim3d.data.files.dicom_child import limit_memory; limit_memory(1 << 28);"
        "bytearray(1 << 30)"
    )
    root = str(Path(mim3d.__file__).parents[1])

    done = subprocess.run([sys.executable, "-c", program, root], capture_output=True, check=False)

    assert b"MemoryError" in done.stderr


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_daemonic_workers_read_too_and_leave_the_parents_reader_alone(tmp_path, method):
    stored = dicom_folder(tmp_path)
    read_volume(tmp_path)
    mine = dicom_module._reader._process

    # Workers of a pool are daemons, which may not have children by multiprocessing's own means.
    with multiprocessing.get_context(method).Pool(2) as pool:
        volumes = pool.map(read_volume, [tmp_path] * 4, chunksize=1)

    assert all((volume.voxels[0] == stored[::-1, ::-1]).all() for volume in volumes)
    assert dicom_module._reader._process is mine
    assert (read_volume(tmp_path).voxels[0] == stored[::-1, ::-1]).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_starts_without_its_parents_reader(tmp_path):
    dicom_folder(tmp_path)
    read_volume(tmp_path)

    child = os.fork()
    if child == 0:
        os._exit(0 if dicom_module._reader._process is None else 1)

    assert os.waitpid(child, 0)[1] == 0
    assert dicom_module._reader._process is not None
    assert dicom_module._reader._process.poll() is None


def test_the_working_directory_cannot_put_modules_in_the_way(tmp_path, monkeypatch):
    folder = tmp_path / "series"
    dicom_folder(folder)
    for name in ("json", "numpy", "struct", "mim3d"):
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dicom_module, "_reader", DicomReader())

    read_volume("series")

    assert not (tmp_path / "executed").exists()
    dicom_module._reader.close()

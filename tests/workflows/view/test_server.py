"""What the server gives, and to whom.

Each refusal was seen to fail with its guard broken: `HOST` matching everything, the comparison of
the token left out, `Roots.check` returning at once, `Roots.holds` without `resolve`, `do_POST =
do_GET`, `LOOPBACK = "0.0.0.0"`, and a policy without `default-src`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from http.client import HTTPConnection
from urllib.parse import urlsplit

import nibabel as nib
import numpy as np
import pytest

from mim3d.config.view import ViewConfig, ViewingConfig
from mim3d.data.store import open_store
from mim3d.foundation.errors import ConfigError
from mim3d.workflows.view.server import serving
from mim3d.workflows.view.view import opened


def as_image(content):
    return nib.Nifti1Image.from_bytes(content)


def test_the_page_and_its_parts_are_served_with_their_types(site):
    for place, kind in (("", "text/html"), ("viewer.js", "text/javascript"),
                        ("viewer.css", "text/css"), ("niivue-0.69.0.js", "text/javascript"),
                        ("niivue-LICENSE.txt", "text/plain")):  # fmt: skip
        status, headers, content = site.get(place)

        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert len(content) == int(headers["Content-Length"]) > 0


def test_an_image_arrives_with_every_voxel_where_it_was(site, study):
    case = json.loads(site.get("case/0.json")[2])
    image = case["images"][0]

    status, _, content = site.get(f"image/{image['layer']}/{image['channel']}.nii")

    got, want = as_image(content), nib.load(study / "images/case_a.nii.gz")
    assert status == 200
    np.testing.assert_array_equal(got.get_fdata(), want.get_fdata())
    np.testing.assert_allclose(got.affine, want.affine, atol=1e-6)


def test_a_label_map_arrives_as_places_in_its_list_of_classes(site, study):
    case = json.loads(site.get("case/1.json")[2])
    overlay = next(one for one in case["overlays"] if one["role"] == "prediction")

    classes = json.loads(site.get(f"labels/{overlay['layer']}.json")[2])["classes"]
    got = as_image(site.get(f"labels/{overlay['layer']}.nii")[2])

    truth = np.asarray(nib.load(study / "predictions/mae/case_b.nii.gz").dataobj)
    by_index = {row["index"]: row["value"] for row in classes} | {0: 0}
    values = np.vectorize(by_index.get)(np.asarray(got.dataobj))
    np.testing.assert_array_equal(values, truth)
    assert [row["name"] for row in classes] == ["liver", "left kidney"]
    assert classes[0]["voxels"] == (truth == 3).sum()
    assert classes[0]["ml"] == pytest.approx((truth == 3).sum() * 1.5 * 1 * 3 / 1000)
    assert int(got.header["intent_code"]) == 1002


def test_a_case_of_a_store_is_shown_as_it_was_prepared(store):
    with opened(str(store)) as (server, catalogue), serving(server):
        number = next(n for n, one in enumerate(catalogue.layers) if one.role == "image")
        layer = catalogue.layers[number]
        answer = server.answers.to(f"image/{number}/0.nii")

    with open_store(store).open(layer.stored) as case:
        want = case.read_intensities((0, 0, 0), case.shape[1:])[0]
        affine = case.affine
    got = as_image(answer.body)
    np.testing.assert_array_equal(got.get_fdata(), want)
    np.testing.assert_allclose(got.affine, affine, atol=1e-6)


def test_a_large_volume_is_thinned_and_says_so(study):
    config = ViewConfig(view=ViewingConfig(max_mvoxels=0.001))
    with opened(str(study), config) as (server, _), serving(server):
        answer = server.answers.to("image/0/0.nii")

    whole = nib.load(study / "images/case_a.nii.gz")
    x, y, z = map(int, dict(answer.facts)["X-Thinned"].split("x"))
    got = as_image(answer.body)
    assert np.prod(got.shape) <= 1000
    np.testing.assert_array_equal(got.get_fdata(), whole.get_fdata()[::x, ::y, ::z])
    far = [n - 1 for n in got.shape]
    there = [far[0] * x, far[1] * y, far[2] * z]
    np.testing.assert_allclose(got.affine @ [*far, 1], whole.affine @ [*there, 1], atol=1e-4)


def test_head_gives_the_headers_alone(site):
    status, headers, content = site.get("catalogue.json", method="HEAD")

    assert status == 200
    assert int(headers["Content-Length"]) > 0
    assert content == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_every_other_method_is_refused(site, method):
    status, headers, _ = site.get("catalogue.json", method=method)

    assert status == 405
    assert headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example",
             "0.0.0.0", "192.168.0.7:8000", "", "127.0.0.1@evil.example", "127.0.0.1:80:80"],
)  # fmt: skip
def test_a_foreign_host_name_is_refused_even_with_the_token(site, host):
    status, _, content = site.get("catalogue.json", host=host)

    assert status == 403
    assert b"case_a" not in content


def test_a_tunnel_to_another_port_is_served(site):
    assert site.get("catalogue.json", host="localhost:9000")[0] == 200


def test_nothing_is_served_without_the_whole_token(site):
    token = site.server.token
    for path in ("/", "/index.html", "/catalogue.json", f"/{token}", f"/{token[:-1]}/",
                 f"/{token[:-1]}x/", f"/{token}x/catalogue.json", "/%00/"):  # fmt: skip
        status, _, content = site.get(path, raw=True)

        assert status == 403, path
        assert token.encode() not in content
    assert len(token) >= 43  # 32 bytes of randomness


def test_two_servers_have_two_tokens(study):
    with opened(str(study)) as (first, _), opened(str(study)) as (second, _):
        assert first.token != second.token


def test_only_the_loopback_address_is_bound(site):
    assert site.server.server_address[0] == "127.0.0.1"
    port = urlsplit(site.address).port
    # Every address of 127/8 is this machine; only the one that was bound answers.
    with (
        pytest.raises(ConnectionRefusedError),
        socket.create_connection(("127.0.0.2", port), timeout=2),
    ):
        pass


@pytest.mark.parametrize(
    "place",
    ["../secret/patient_zero.nii.gz", "image/../../secret/patient_zero.nii.gz",
     "%2e%2e/secret/face.png", "picture/..%2f..%2fsecret%2fface.png", "/etc/passwd", "file:///etc",
     "image/%2fetc%2fpasswd/0.nii", "picture/-1.png", "image/999999/0.nii", "image/0/99.nii",
     "labels/0.json", "case/0x0.json", "picture/0.png/../0.png", "__init__.py", "assets.py"],
)  # fmt: skip
def test_an_address_is_no_path(site, place):
    status, _, content = site.get(place)

    assert status == 404
    assert b"root:" not in content


def test_half_an_address_is_answered_and_leaves_no_trace(site, capfd):
    status, headers, _ = site.get("http://[half", raw=True)

    assert status == 400
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert capfd.readouterr().err == ""


def test_a_link_that_leads_out_is_not_listed(study):
    (study / "images/case_d.nii.gz").symlink_to(study.parent / "secret/patient_zero.nii.gz")
    (study / "more").symlink_to(study.parent / "secret")

    with opened(str(study)) as (_, catalogue):
        names = [case.name for case in catalogue.cases.values()]

    assert names == ["case_a", "case_b", "case_c"]
    assert any("2 link(s) lead out" in note for note in catalogue.notes)


def test_a_link_within_the_paths_is_followed(study):
    (study / "again").symlink_to(study / "images/case_a.nii.gz")
    (study / "images/case_d.nii.gz").symlink_to(study / "images/case_a.nii.gz")

    with opened(str(study)) as (server, catalogue), serving(server):
        place = list(catalogue.cases).index("case_d")
        number = list(catalogue.cases.values())[place].layers[0]

        assert server.answers.to(f"image/{number}/0.nii").body


@pytest.mark.parametrize("place", ["image/0/0.nii", "case/0.json"])
def test_a_file_that_became_a_link_to_the_outside_is_refused(site, study, place):
    assert site.get(place)[0] == 200
    (study / "images/case_a.nii.gz").unlink()
    (study / "images/case_a.nii.gz").symlink_to(study.parent / "secret/patient_zero.nii.gz")

    status, _, content = site.get(place)

    assert status == 403
    assert "leads out" in json.loads(content)["what"]


def test_a_folder_that_became_a_link_to_the_outside_is_refused(site, study):
    shutil.rmtree(study / "runs/pretrain/pictures")
    shutil.copy(study.parent / "secret/face.png", study.parent / "secret/curves.png")
    (study / "runs/pretrain/pictures").symlink_to(study.parent / "secret")

    assert site.get("picture/0.png")[0] == 403


def test_the_voxels_of_a_pair_may_not_lie_outside(study, tmp_path):
    pair = nib.Nifti1Pair(np.zeros((5, 4, 3), np.int16), np.eye(4))
    nib.save(pair, study / "images/pair.hdr")
    shutil.move(study / "images/pair.img", study.parent / "secret/pair.img")
    (study / "images/pair.img").symlink_to(study.parent / "secret/pair.img")
    with opened(str(study)) as (server, catalogue), serving(server) as address:
        number = catalogue.cases["pair"].layers[0]
        parts = urlsplit(address)

        client = HTTPConnection(parts.hostname, parts.port, timeout=20)
        client.request("GET", f"{parts.path}image/{number}/0.nii")
        assert client.getresponse().status == 403
        client.close()


def test_a_picture_that_is_none_is_refused(site, study):
    (study / "runs/pretrain/pictures/curves.png").write_text("<script>alert(1)</script>")

    assert site.get("picture/0.png")[0] == 422


def test_a_damaged_volume_is_told_as_one_sentence_and_the_server_goes_on(site, study):
    path = study / "images/case_a.nii.gz"
    path.write_bytes(path.read_bytes()[:100])

    status, _, content = site.get("image/0/0.nii")

    assert status == 422
    assert "case_a.nii.gz" in json.loads(content)["what"]
    assert site.get("image/1/0.nii")[0] == 200


def test_every_answer_forbids_what_the_page_does_not_need(site):
    for place in ("", "catalogue.json", "nothing"):
        headers = site.get(place)[1]
        policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))

        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["connect-src"] == "'self' data:"
        assert policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert not any(
            "http" in part or "*" in part or "unsafe" in part for part in policy.values()
        )
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cache-Control"] == "no-store"
        assert "Python" not in headers["Server"]


def test_a_port_that_is_taken_is_an_error_of_the_command(study):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ViewConfig(view=ViewingConfig(port=taken.getsockname()[1]))

        with pytest.raises(ConfigError, match="cannot be used"), opened(str(study), config):
            pass


def test_nothing_is_written_under_the_paths(study):
    before = sorted(os.walk(study))
    with opened(str(study)) as (server, _), serving(server):
        for place in ("catalogue.json", "case/0.json", "image/0/0.nii", "picture/0.png"):
            server.answers.to(place)

    assert sorted(os.walk(study)) == before

"""The page as one file that allows nothing but what is in it."""

from __future__ import annotations

import base64
import hashlib
import re

from mim3d.pages.report.elements import Prose, Section
from mim3d.pages.report.page import GENERATOR, Page


def page(title: str = "A title") -> str:
    parts = [
        Section("First", (Prose("one"),), anchor="first"),
        Section("Nothing", (), anchor="nothing"),
    ]
    return Page(title, [Prose("lead")], parts, "foot").html()


def test_parts_without_content_are_neither_on_the_page_nor_in_its_navigation():
    html = page()

    assert '<a href="#first">First</a>' in html
    assert 'id="first"' in html
    assert "othing" not in html.replace("loads nothing", "")


def test_the_policy_allows_exactly_the_style_and_script_of_the_page():
    html = page()

    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        [inside] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_no_address_stands_in_the_page():
    html = page()

    assert not re.findall(r"(?:https?:)?//[\w.]", html)
    assert not re.findall(r"""\b(?:src|href)=["'](?!#|data:)""", html)
    assert "@import" not in html
    assert "url(" not in html


def test_what_is_filled_in_is_not_filled_again():
    html = page("@@script@@ <b>")

    assert html.count("<title>@@script@@ &lt;b&gt;</title>") == 1
    assert html.count("<script>") == 1


def test_a_page_says_early_what_made_it():
    assert f'<meta name="generator" content="{GENERATOR}">' in page()[:1024]

"""BUILD_NOTES.md and README.md name what there is."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ("jaxreg", "baselines", "experiments")


def text(name):
    return (ROOT / name).read_text()


def test_the_constants_that_the_notes_name_are_in_the_code():
    named = set(re.findall(r"`(?:\w+\.)*(_[A-Z][A-Z_]+)`", text("BUILD_NOTES.md")))
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    code = "\n".join(path.read_text() for path in files)
    assert len(named) > 40
    unknown = sorted(name for name in named if not re.search(rf"^\s*.*\b{name}\b.* = ", code, re.M))
    assert unknown == []


@pytest.mark.parametrize("name", ["README.md", "BUILD_NOTES.md"])
def test_links_lead_to_files_and_headings_that_exist(name):
    links = re.findall(r"\]\((?!https?:)([^)\s]+)\)", text(name))
    assert links
    for link in links:
        path, _, anchor = link.partition("#")
        target = ROOT / (path or name)
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            slugs = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings]
            assert anchor in slugs, link

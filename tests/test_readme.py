"""The examples of README.md and docs/api.md run, and the reading order names every file of the book."""

import re
from pathlib import Path

import pytest

from tests.test_imports import BOOK, imported
from tinyres.data import shapes

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "docs/api.md")
EXAMPLES = [
    (page, number, code)
    for page in PAGES
    for number, code in enumerate(
        re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.S | re.M)
    )
]


@pytest.mark.parametrize(("page", "number", "code"), EXAMPLES, ids=[f"{p} {n}" for p, n, _ in EXAMPLES])
def test_an_example_runs(page, number, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # the built-in images are kept there
    monkeypatch.setattr(shapes, "TRAINING_IMAGES", 300)
    monkeypatch.setattr(shapes, "TEST_IMAGES", 300)
    exec(compile(code, f"{page}, example {number}", "exec"), {"__name__": "example"})


def test_there_are_examples_on_each_page():
    assert {page for page, _, _ in EXAMPLES} == set(PAGES)


def test_the_reading_order_names_every_file_of_the_book_behind_those_that_it_imports():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Reading the source")[2]
    place = {name: text.find(f"`{name.rpartition('.')[2]}`") for name in BOOK if name != "layers"}
    assert min(place.values()) >= 0, place
    for name in place:
        path = ROOT / "tinyres" / (name.replace(".", "/") + ".py")
        for other in imported(path, inside_functions=False) & place.keys():
            assert place[other] < place[name], f"{name} imports {other}"

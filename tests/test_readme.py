"""The examples of README.md and docs/api.md run, and the reading order names every file of the book."""

import re
from pathlib import Path

import pytest

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
    exec(compile(code, f"{page}, example {number}", "exec"), {"__name__": "example"})


def test_there_are_examples_on_each_page():
    assert {page for page, _, _ in EXAMPLES} == set(PAGES)


def test_the_reading_order_names_every_file_of_the_book():
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Reading the source")[2]
    book = [*(ROOT / "tinyres").glob("*.py"), *(ROOT / "tinyres" / "layers").glob("*.py")]
    for path in book:
        if not path.stem.startswith("__"):
            assert f"`{path.stem}`" in text, path.stem

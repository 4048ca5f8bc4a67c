"""The pages tell the truth: every Python block runs, every link to a file leads somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from packedbag.core import errors
from packedbag.report.memory import human

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?P<language>[^\n]*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#|mailto:)(?P<target>[^)#\s]+)")


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Return (line, code) of every block fenced as python."""
    return [
        (text[: fence.start("body")].count("\n"), fence["body"])
        for fence in FENCE.finditer(text)
        if fence["language"].strip() == "python"
    ]


def run_page(text: str, name: str) -> dict[str, Any]:
    """Run a page's blocks in order, in one namespace; line numbers in tracebacks are the page's."""
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for line, code in python_blocks(text):
        exec(compile("\n" * line + code, name, "exec"), namespace)
    return namespace


def page_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page.read_text())], ids=page_id)
# The flag is right for every torch since 2.6; 2.13 has a second one of almost the same meaning.
@pytest.mark.filterwarnings("ignore:.broadcast_buffers. is deprecated:FutureWarning")
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    run_page(page.read_text(), str(page))


def test_the_readme_and_the_quickstart_have_python_blocks() -> None:
    assert python_blocks((ROOT / "README.md").read_text())
    assert len(python_blocks((ROOT / "docs" / "quickstart.md").read_text())) >= 4


def test_a_block_that_is_wrong_fails() -> None:
    with pytest.raises(AssertionError):
        run_page("text\n```python\nassert 1 + 1 == 3\n```\n", "page.md")


def test_blocks_of_one_page_share_their_names() -> None:
    assert run_page("```python\na = 1\n```\ntext\n```python\nb = a + 1\n```\n", "page.md")["b"] == 2


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    targets = [match["target"] for match in LINK.finditer(text)]
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_table_of_the_memory_page_holds_the_numbers_that_were_measured() -> None:
    measured = json.loads((ROOT / "docs" / "benchmarks" / "memory.json").read_text())
    weights = measured["rows"] * measured["dim"]
    page = (ROOT / "docs" / "memory.md").read_text()
    for kind in measured["kinds"].values():
        table, state, peak = (kind[f"{part}_bytes"] / weights for part in ("table", "state", "peak"))
        assert f"| {table:.3f} | {state:.3f} | {peak:.2f} |" in page


def test_the_table_of_the_readme_holds_the_numbers_that_were_measured() -> None:
    measured = json.loads((ROOT / "docs" / "benchmarks" / "movielens_100k.json").read_text())
    rows = {row.split(" | ")[0].strip("| "): row for row in (ROOT / "README.md").read_text().splitlines() if "|" in row}
    names = {"packed": "packed, k = 2", "char": "Char (bool)", "fp32": "fp32"}
    for line in measured["lines"]:
        cells = [cell.strip() for cell in rows[names[line["kind"]]].strip("|").split("|")]
        quality = ["-" if line[part] is None else f"{line[part]:.4f}" for part in ("auc", "log_loss")]
        sizes = [human(line[f"{part}_bytes"]) for part in ("table", "state", "peak", "large_peak")]
        assert cells[2:] == quality + sizes


def test_the_page_of_errors_lists_every_class_with_the_built_in_it_derives_from() -> None:
    page = (ROOT / "docs" / "errors.md").read_text()
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    for name, kind in classes.items():
        built_in = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins"]
        assert name == "PackedBagError" or f"| `{name}` | `{built_in[0]}` |" in page

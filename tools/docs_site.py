"""Prepare the pages of the documentation site and build it below build/site: `python -m tools.docs_site`.

The README is the front page; the change log, the page for contributors and the benchmarks' results are pages, and so is
each public name, by its docstring. A public name without one ends the build, as a broken link does.
"""

import importlib
import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build" / "docs"
_LIBRARIES = ("embedpipe", "dalle2_core")


def write_pages() -> None:
    """All pages below build/docs, with links as they are seen from there."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "slurm"))
    results = ROOT / "benchmarks" / "results"
    shutil.copytree(results, PAGES / "results", ignore=shutil.ignore_patterns("*.json"))
    (PAGES / "index.md").write_text(_inward((ROOT / "README.md").read_text()))
    for name in ("CHANGELOG", "CONTRIBUTING"):
        (PAGES / f"{name.lower()}.md").write_text(_inward((ROOT / f"{name}.md").read_text()))
    (PAGES / "decisions" / "index.md").write_text(_contents("Decisions", ROOT / "docs" / "decisions"))
    (PAGES / "results" / "index.md").write_text(_contents("Results of the benchmarks", results))
    (PAGES / "api").mkdir()
    for library in _LIBRARIES:
        (PAGES / "api" / f"{library}.md").write_text(_api(library))
    for page in PAGES.rglob("*.md"):
        page.write_text(_within(page.read_text(), "../" * (len(page.relative_to(PAGES).parts) - 1)))


def _within(markdown: str, up: str) -> str:
    """Links to results lead to their pages; links to other files of the repository become plain text."""
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/results/(?=\))", f"]({up}results/index.md", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+benchmarks/results/", f"]({up}results/", markdown)
    markdown = re.sub(r"\]\((?:\.\./)+README\.md", f"]({up}index.md", markdown)
    return re.sub(r"\[([^\]]+)\]\((?:\.\./)+(?!results|decisions|index|[a-z_]+\.md)[^)]*\)", r"\1", markdown)


def _inward(readme: str) -> str:
    """Links of a page at the top of the repository, as they are seen from docs/."""
    readme = re.sub(r"\]\(docs/(?=[^)]*\))", "](", readme)
    readme = re.sub(r"\]\((CHANGELOG|CONTRIBUTING)\.md\)", lambda found: f"]({found[1].lower()}.md)", readme)
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#|[\w/-]+\.md|pictures/)[^)]*\)", r"\1", readme)


def _contents(title: str, folder: Path) -> str:
    lines = [f"- [{_title(path)}]({path.name})" for path in sorted(folder.glob("*.md"))]
    return "\n".join([f"# {title}", "", *lines, ""])


def _title(path: Path) -> str:
    first = next((line for line in path.read_text().splitlines() if line.startswith("# ")), path.stem)
    return first.removeprefix("# ")


def _api(library: str) -> str:
    """A page of all public names of a library. Ends the program where one lacks a docstring."""
    loaded = griffe.load(library, search_paths=[ROOT], resolve_aliases=True)
    parts, missing = [f"# {library}\n"], []
    for name in sorted(str(name) for name in loaded.exports or ()):
        found = loaded[name]
        target = found.final_target if found.is_alias else found
        if target.is_attribute:
            parts.append(_made(library, name))
            continue
        parts.append(f"::: {library}.{name}\n")
        missing += [f"{library}.{name}"] * (not target.has_docstring)
        missing += [
            f"{library}.{name}.{member.name}"
            for member in target.members.values()
            if target.is_class and member.is_function and not member.name.startswith("_") and not member.has_docstring
        ]
    if missing:
        sys.exit(f"public names without a docstring: {', '.join(missing)}")
    return "\n".join(parts)


def _made(library: str, name: str) -> str:
    """A function that is put together when its module is loaded: its source does not show signature and docstring."""
    function = getattr(importlib.import_module(library), name)
    text = inspect.getdoc(function)
    if not text:
        sys.exit(f"public names without a docstring: {library}.{name}")
    arguments = ",\n    ".join(str(it).replace("'", "") for it in inspect.signature(function).parameters.values())
    return f"## `{library}.{name}`\n\n```python\n{name}(\n    {arguments},\n)\n```\n\n{text}\n"


def main() -> int:
    """Build the site; not 0 where something is broken."""
    write_pages()
    return subprocess.run(
        [Path(sys.executable).with_name("zensical"), "build", "--strict"], cwd=ROOT, check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())

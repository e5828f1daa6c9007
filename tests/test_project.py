"""Imports flow one way: cluster -> analyze -> extract; what is installed cannot be shadowed; pages link to what is there."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "extract": {"analyze", "cluster", "ray", "affectome"},
    "analyze": {"cluster", "ray", "affectome"},
    "cluster": {"affectome"},
}


def imported_packages(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            found.add(str(node.module).partition(".")[0])
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_flow_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        assert not imported_packages(file) & FORBIDDEN[package], file


def test_extract_and_analyze_load_no_ray() -> None:
    modules = "extract.run, extract.verify, extract.parity, analyze.report, analyze.persistence"
    program = f"import sys, {modules}; assert 'ray' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("name", ["extract.py", "analyze.py", "cluster/__init__.py"])
def test_a_users_own_module_of_the_same_name_is_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    shadow = tmp_path / name
    shadow.parent.mkdir(exist_ok=True)
    shadow.write_text("")
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import affectome"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode != 0
    assert str(shadow) in result.stderr.splitlines()[-1]
    assert "rename" in result.stderr


def test_the_public_face_has_three_names() -> None:
    program = "import affectome; print(sorted(affectome.__all__))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['analyze', 'extract', 'open']"


@pytest.mark.parametrize("page", ["README.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    file = ROOT / page
    for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
        assert (file.parent / link).exists(), link


@pytest.mark.slow
def test_a_wheel_works_installed_outside_the_repository(tmp_path: Path) -> None:
    build: list[str | Path] = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path / "dist", ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    install: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--target",
        tmp_path / "site",
        wheel,
    ]
    subprocess.run(install, check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    program = (
        "import affectome, sys; print(affectome.__file__); sys.argv[1:] = ['corpus', 'check', 'builtin']; affectome.main()"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.startswith(str(tmp_path / "site"))
    assert "1,575" in result.stdout
    templates = [path.name for path in (tmp_path / "site" / "analyze" / "templates").iterdir()]
    assert "report.html.j2" in templates
    page = [path.name for path in (tmp_path / "site" / "analyze" / "service" / "page").iterdir()]
    assert {"index.html", "page.js", "page.css", "icon.svg"} <= set(page)

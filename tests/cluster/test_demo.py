"""The demo, whole: minutes of real work, so it runs with make test-all."""

import subprocess
import sys
from pathlib import Path

import pytest

AFFECTOME = Path(sys.executable).with_name("affectome")


@pytest.mark.slow
def test_the_demo_ends_with_its_report_and_a_second_one_finds_the_run(tmp_path: Path) -> None:
    first = subprocess.run([AFFECTOME, "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    report = Path(first.stdout.split()[-1])
    page = report.read_text()
    assert all(emotion in page for emotion in ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"))
    for answered in (
        "How does it lay",
        "Where can the emotion",
        "For how long does",
        "Without keyword and with",
        "asked for the emotion as JSON",
    ):
        assert answered in page
    assert "resid.mean, linear probe" in first.stdout
    second = subprocess.run([AFFECTOME, "demo"], cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "is finished already: 1,575 of 1,575 rows" in second.stderr
    assert second.stdout == first.stdout

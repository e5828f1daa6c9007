"""docs/recipes.md works as it is printed: every block runs against a real store and prints what stands under it."""

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from analyze.query import Run, open_store
from cluster.cli import app
from extract.encoding import to_stored
from extract.models import Model
from extract.store import Store
from tests.analyze.conftest import Plant
from tests.planted import IDENTITY, manifest_of, receipt_of

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
PACKAGES = Path(__file__).parent / "javascript"
LAYERS, N_ROWS, WIDTH = (0, 4, 8, 12, 16), 240, 32
LABELS = ("anger", "fear", "joy", "neutral", "sadness", "surprise")
REVISIONS = {"3f9c": "1f0c2d3a" * 5, "a41b": "8e72b540" * 5}
"""How the page calls each run, and the revision of its model."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of the page."""

    language: str
    code: str
    printed: str | None
    """What stands under it; None where nothing does."""


def blocks() -> list[Block]:
    """Those that run; what one prints is in a block of text or JSON right under it."""
    fenced = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    found: list[Block] = []
    for language, code in fenced:
        if language in ("text", "json"):
            assert found[-1].printed is None, code
            found[-1] = replace(found[-1], printed=code)
        else:
            found.append(Block(language, code, None))
    return found


HERE = [block for block in blocks() if block.language == "python" or block.code.startswith("affectome ")]
"""Blocks that this process runs; the others are of JavaScript."""
(NPM,) = (block.code for block in blocks() if block.code.startswith("npm "))
(SCRIPT,) = (block.code for block in blocks() if block.language == "js")
(NODE,) = (block for block in blocks() if block.code.startswith("node "))


def states(newer: bool) -> NDArray[np.float32]:
    """(L, N, D): a direction for each label, strongest at layer 12; the newer revision moves more with every layer."""
    rng = np.random.default_rng(0)
    direction = rng.standard_normal((len(LABELS), WIDTH))[np.arange(N_ROWS) % len(LABELS)]
    strength = np.array([0, 0.1, 0.3, 0.5, 0.4])[:, None, None]
    moved = np.linspace(0, 0.6, len(LAYERS))[:, None, None] * rng.standard_normal((len(LAYERS), N_ROWS, WIDTH))
    told = strength * direction + rng.standard_normal((len(LAYERS), N_ROWS, WIDTH))
    return (told + newer * (moved + 0.4 * strength * direction)).astype(np.float32)


def write_run(store: Store, revision: str, hidden: NDArray[np.float32]) -> Run:
    """A run of the page's store."""
    rows = range(N_ROWS)
    labels = [LABELS[row % len(LABELS)] for row in rows]
    texts = [f"{('They', 'We', 'All', 'Some')[row % 4]} wrote line {row}, of {labels[row]}" for row in rows]
    split = ["test" if row % 3 == 0 else "train" for row in (row // len(LABELS) for row in rows)]
    columns = {"utterance_id": [f"u{row}" for row in rows], "text": texts, "label": labels, "split": split}
    table = pa.table({"row": rows, **columns, "n_tokens": [9] * N_ROWS})
    identity = replace(
        IDENTITY, weights=f"hub:lab/emo@{revision}", sites=("resid.last",), layers=LAYERS, stored_dtype="bfloat16"
    )
    manifest = replace(manifest_of(identity, N_ROWS, WIDTH, 100), model=f"lab/emo@{revision}")
    run = store.create_run(manifest, {"utterances": table, "tokens": table.select(["row"])})
    for shard in range(run.n_shards):
        start, stop = run.shard_rows(shard)
        part = to_stored(torch.from_numpy(hidden[:, start:stop].copy()), "bfloat16")
        assert run.commit(receipt_of(run, shard, 0, run.write_attempt(shard, {"resid.last": part}, ()), n_tokens=9))
    return Run(run)


@dataclass(frozen=True, slots=True)
class Kitchen:
    """Where the page's store lies."""

    directory: Path
    """The working directory of its blocks."""
    runs: dict[str, Run]
    """By the page's name for them."""

    def named(self, text: str) -> str:
        """The page's text, with runs by the names they have here."""
        for name, run in self.runs.items():
            text = text.replace(name, run.run_id[:6])
        return text


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Kitchen:
    directory = tmp_path_factory.mktemp("recipes")
    store = Store.open(str(directory / "emotion"), create=True)
    runs = {name: write_run(store, revision, states(newer=name == "a41b")) for name, revision in REVISIONS.items()}
    return Kitchen(directory, runs)


@pytest.fixture(scope="module")
def printed(kitchen: Kitchen, deep_model: Model) -> list[str | Exception]:
    """What each block of HERE prints, one after another as on the page; or why it fails."""
    names: dict[str, object] = {}
    found: list[str | Exception] = []
    others = ("--balance weights --layers 12", "--regularisation 0.9 --layers 8,12", "--kind ridge", "--layers 12")
    with contextlib.chdir(kitchen.directory):
        for block in HERE:
            out = io.StringIO()
            code = kitchen.named(block.code).replace("Qwen/Qwen3-0.6B", deep_model.name)
            try:
                with contextlib.redirect_stdout(out):
                    if block.language == "python":
                        exec(code, names)  # noqa: S102 - the page's own
                    else:
                        out.write(typed(code))
                        if code.startswith("affectome probe "):  # and whoever has more probes reads the same scores
                            typed("\n".join(f"{command} {other}" for other in others for command in code.splitlines()))
            except Exception as error:
                found.append(error)
            else:
                found.append(out.getvalue())
    return found


def typed(code: str) -> str:
    """What commands print, run as a shell would."""
    said = ""
    for command in re.split(r"\n(?=affectome )", code):
        done = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        said += done.stdout
    return said


@pytest.mark.parametrize("number", range(len(HERE)), ids=[block.code.split("\n")[0][:30] for block in HERE])
def test_a_block_runs_and_prints_what_stands_under_it(number: int, kitchen: Kitchen, printed: list[str | Exception]) -> None:
    block, found = HERE[number], printed[number]
    if isinstance(found, Exception):
        raise found
    if block.printed is None:
        return
    expected = kitchen.named(block.printed)
    if "--json" in block.code:
        assert json.loads(found) == json.loads(expected)
    else:
        assert found.split("\n") == expected.split("\n")


def test_files_that_the_page_writes_hold_what_it_says(kitchen: Kitchen, printed: list[str | Exception]) -> None:
    assert printed
    assert {path.name for path in kitchen.directory.iterdir()} >= {"fear.parquet", "beside"}
    assert {path.name for path in (kitchen.directory / "beside").iterdir()} == {
        "comparison.md",
        "comparison.png",
        "similarity.png",
    }


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with recipe.mjs and the packages it imports."""
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("these tests run JavaScript and want Node with npm (apt install nodejs npm)")
    directory = tmp_path_factory.mktemp("javascript")
    for name in ("package.json", "package-lock.json"):
        shutil.copy(PACKAGES / name, directory)
    patience = ("--prefer-offline", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")
    done = subprocess.run(["npm", "ci", "--no-audit", "--no-fund", *patience], cwd=directory, capture_output=True, text=True)
    if re.search(r"\b(ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ENETUNREACH|ETIMEDOUT)\b", done.stderr):
        pytest.skip("these tests install packages from npm, whose registry cannot be reached from here")
    assert done.returncode == 0, done.stderr
    (directory / "recipe.mjs").write_text(SCRIPT)
    (directory / "before_node_24.mjs").write_text(
        'import { Float16Array } from "@petamoriken/float16";\nglobalThis.Float16Array ??= Float16Array;\n'
    )
    return directory


def in_javascript(node: Path, run: Run, site: str, layer: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", "--import", "./before_node_24.mjs", "recipe.mjs", run.stored.objects.url(), site, str(layer)],
        cwd=node,
        capture_output=True,
        text=True,
    )


def test_javascript_prints_what_stands_under_it_and_reads_every_bit(kitchen: Kitchen, node: Path) -> None:
    (node / "emotion").symlink_to(kitchen.directory / "emotion")
    done = subprocess.run(["bash", "-c", kitchen.named(NODE.code)], cwd=node, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (NODE.printed, "")
    expected = kitchen.runs["3f9c"].hidden("resid.last", 12)
    np.testing.assert_array_equal(np.fromfile(node / "hidden.f32", "<u4"), expected.view(np.uint32).ravel())


@pytest.mark.parametrize(
    ("site", "stored_dtype", "compression"),
    [
        ("resid.last", "float32", "none"),
        ("resid.last", "bfloat16", "lz4"),
        ("resid.offset", "float32", "lz4"),
        ("resid.all", "bfloat16", "none"),
        ("resid.last", "float16", "none"),
    ],
)
def test_javascript_reads_every_kind_of_array_bit_by_bit(
    site: str, stored_dtype: str, compression: str, node: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lengths = [1 + row % 3 for row in range(50)] if site == "resid.all" else []
    shape = (2, sum(lengths) or 50, *((3,) if site == "resid.offset" else ()), 2048)
    hidden = np.random.default_rng(0).standard_normal(shape, np.float32)
    run = Plant(tmp_path_factory)(
        hidden,
        {"label": ["joy", "fear"] * 25},
        layers=(3, 5),
        offsets=(0, 1, 4) if site == "resid.offset" else (),
        lengths=lengths,
        stored_dtype=stored_dtype,
        compression=compression,
        rows_per_shard=40,
    )
    done = in_javascript(node, run, site, 5)
    assert done.returncode == 0, done.stderr
    kept = torch.from_numpy(hidden[1]).to(getattr(torch, stored_dtype)).float().numpy()
    np.testing.assert_array_equal(np.fromfile(node / "hidden.f32", "<u4"), kept.view(np.uint32).ravel())


def test_javascript_refuses_what_is_damaged_missing_or_not_there(kitchen: Kitchen, node: Path, tmp_path: Path) -> None:
    shutil.copytree(kitchen.directory / "emotion", tmp_path / "emotion")
    run = open_store(str(tmp_path / "emotion")).run(kitchen.runs["3f9c"].run_id)
    root = Path(run.stored.objects.url())
    assert "layer 5 is not held" in in_javascript(node, run, "resid.last", 5).stderr
    (victim,) = root.glob("shards/000001-*/resid.last/c.3.0.0")
    whole = victim.read_bytes()
    victim.write_bytes(whole[:7] + bytes([whole[7] ^ 1]) + whole[8:])
    assert f"{victim.relative_to(root)} is damaged" in in_javascript(node, run, "resid.last", 12).stderr
    assert in_javascript(node, run, "resid.last", 8).returncode == 0
    (table,) = root.glob("tables/*/utterances.parquet")
    kept = table.read_bytes()
    table.write_bytes(kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:])
    assert "utterances.parquet is damaged" in in_javascript(node, run, "resid.last", 8).stderr
    table.write_bytes(kept)
    victim.unlink()
    assert "no such file" in in_javascript(node, run, "resid.last", 12).stderr
    assert run.stored.void(1, 1, "to see it missing")
    assert "the run is not complete" in in_javascript(node, run, "resid.last", 8).stderr


def test_the_page_names_the_packages_that_are_pinned_here() -> None:
    pinned = json.loads((PACKAGES / "package.json").read_text())["dependencies"]
    assert set(NPM.split()[2:]) == {f"{name}@{version}" for name, version in pinned.items()}
    lock = (PACKAGES / "package-lock.json").read_text()
    assert "resolved" not in lock  # whichever registry a user has
    assert json.loads(lock)["packages"][""]["dependencies"] == pinned

"""How long the page of `affectome serve` takes to draw a large run, in a real Chromium over a real server; and its picture.

    python benchmarks/page.py [--rows 50000] [--directory DIR]
    python benchmarks/page.py --picture docs/images/page.png --store STORE

The first makes a run of 50,000 labelled rows x 12 layers x 576 in bfloat16 (0.7 GB) with a probe on every layer. Cold is a
server that was just started and has read nothing, or a layer that it was not asked for before; warm is the same once more. The
browser's requests to anything but the server are cut off.

The second takes the picture of the README, of a store that these made:

    affectome extract --corpus builtin --store STORE
    affectome probe STORE RUN --site resid.last; affectome probe STORE RUN --site resid.mean
    affectome persistence STORE RUN --layers 16,24

Shape suffixes: L layers, N rows of a shard, D width.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from first_run import commit, processor
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, Route, sync_playwright
from rich.console import Console
from rich.table import Table
from store import SITE, WIDTH, create, write_shard

from analyze import results
from analyze.probes import probe_layers
from analyze.query import Run
from extract.stored_run import StoredRun

LAYERS = 12
TIMES = 5
LABELS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
PICTURE_OF = "site=resid.last&layer=28&text="
SENTENCE = "They moved the meeting again and nobody told me."
_CLICK = """layer => {
    performance.clearMarks("projection drawn");
    window.clicked = performance.now();
    document.querySelector(`[data-layer="${layer}"]`).dispatchEvent(new MouseEvent("click", { bubbles: true }));
}"""
_MARK = "name => performance.getEntriesByName(name).at(-1)?.startTime"


def main() -> None:
    """Measure everything and print the table, or take the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--directory", type=Path, help="where to write; a temporary directory without it")
    parser.add_argument("--picture", type=Path, help="take the picture instead, and write it here")
    parser.add_argument("--store", type=Path, help="with --picture: of which store")
    arguments = parser.parse_args()
    with chromium() as browser:
        if arguments.picture is None:
            with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
                measure(browser, Path(directory) / "store", arguments.rows)
        else:
            with served(arguments.store) as url:
                take_picture(browser, url, arguments.picture)


def measure(browser: Browser, store: Path, n_rows: int) -> None:
    """Make the run and print what its page takes."""
    run_id = plant(store, n_rows)
    drawn: dict[str, list[float]] = {}
    for _ in range(TIMES):
        with served(store) as url:
            for name in ("cold", "warm"):
                with opened(browser, f"{url}#run={run_id}&layer=0") as page:
                    for panel, said in (("map", "the layer map"), ("projection", "a projection")):
                        drawn.setdefault(f"from navigation to {said}, {name}", []).append(mark(page, panel))
    with served(store) as url, opened(browser, f"{url}#run={run_id}&layer=0") as page:
        mark(page, "projection")
        for name in ("cold", "warm"):
            for layer in range(1, TIMES + 1):
                drawn.setdefault(f"from a click on a layer to its projection, {name}", []).append(click(page, layer))
    table = Table("what", "median, s", "slowest, s")
    for what, milliseconds in drawn.items():
        table.add_row(what, f"{statistics.median(milliseconds) / 1e3:.2f}", f"{max(milliseconds) / 1e3:.2f}")
    console = Console(highlight=False)
    console.print(f"{datetime.now(UTC):%Y-%m-%d}, commit {commit()}, {processor()}, {os.cpu_count()} cores")
    console.print(f"python benchmarks/page.py --rows {n_rows}; Chromium {browser.version}, {TIMES} times each")
    console.print(table)


def plant(store: Path, n_rows: int) -> str:
    """A run whose states say a little about their labels, with a probe on every layer."""
    rng = np.random.default_rng(0)
    label_N = rng.integers(len(LABELS), size=n_rows)
    columns = {
        "label": [LABELS[label] for label in label_N],
        "split": ["test" if row % 5 == 0 else "train" for row in range(n_rows)],
    }
    stored = create(store, n_rows, layers=LAYERS, columns=columns)
    towards_KD = rng.standard_normal((len(LABELS), WIDTH), np.float32)
    for shard in range(stored.n_shards):
        write_shard(stored, shard, states(stored, shard, label_N, towards_KD))
    run = Run(stored)
    results.save(run, probe_layers(run, SITE, run.layers).result)
    return run.run_id


def states(stored: StoredRun, shard: int, label_N: NDArray[np.int64], towards_KD: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Bits of bfloat16 states of a shard, (L, N, D): later layers say more."""
    start, stop = stored.shard_rows(shard)
    noise_LND = np.random.default_rng(shard).standard_normal((LAYERS, stop - start, WIDTH), np.float32)
    share_L11 = np.linspace(0, 0.15, LAYERS, dtype=np.float32)[:, None, None]
    states_LND = noise_LND + share_L11 * towards_KD[label_N[start:stop]]
    return np.ascontiguousarray(states_LND.view(np.uint16)[..., 1::2])


def click(page: Page, layer: int) -> float:
    """Milliseconds from a click on a layer until its projection is on the screen."""
    page.evaluate(_CLICK, layer)
    return mark(page, "projection") - float(page.evaluate("window.clicked"))


def mark(page: Page, panel: str) -> float:
    """When a panel was on the screen, in milliseconds since the navigation began."""
    page.wait_for_function(_MARK, arg=f"{panel} drawn")
    return float(page.evaluate(_MARK, f"{panel} drawn"))


def take_picture(browser: Browser, url: str, file: Path) -> None:
    """The page with the neighbours of a sentence, and the pointer on a point."""
    with opened(browser, f"{url}#{PICTURE_OF}{SENTENCE}") as page:
        mark(page, "neighbours")
        field = page.locator("#projection .field").bounding_box()
        assert field is not None, "it is on the page"
        for step in range(200):  # the first point from there to the right
            page.mouse.move(field["x"] + field["width"] * (0.2 + step / 1000), field["y"] + field["height"] * 0.3)
            if page.locator(".tip").is_visible():
                break
        page.wait_for_timeout(500)
        page.screenshot(path=file)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium of this machine, without a window."""
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("error: there is no Chromium here; on Debian: apt install chromium")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])


@contextmanager
def served(store: Path) -> Iterator[str]:
    """The address of a server of a store, in a process of its own."""
    command = [sys.executable, "-c", "import affectome; affectome.main()", "serve", str(store), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None, "it is a pipe"
        line = server.stdout.readline()
        try:
            yield next(word for word in line.split() if word.startswith("http://"))
        finally:
            server.terminate()


@contextmanager
def opened(browser: Browser, address: str) -> Iterator[Page]:
    """A page in a context of its own, without a network beyond its server."""
    home = address.partition("#")[0]
    context = browser.new_context(viewport={"width": 1440, "height": 900})

    def at_home_only(route: Route) -> None:
        if route.request.url.startswith(home):
            route.continue_()
        else:
            route.abort()

    context.route("**/*", at_home_only)
    page = context.new_page()
    page.goto(address)
    yield page
    context.close()


if __name__ == "__main__":
    main()

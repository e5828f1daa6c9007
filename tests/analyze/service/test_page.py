"""The page in a real browser over a real server: it shows what the library says, and asks nobody but its server."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from analyze import results
from analyze.directions import probe_direction
from analyze.new_texts import states_of_texts
from analyze.persistence import measure_persistence
from analyze.probes import ProbeSpec, probe_layers
from analyze.query import Run, open_store
from analyze.saved import save_probes
from analyze.scaling import scaling_of
from analyze.similarity import along, nearest
from extract.corpus import Corpus
from extract.models import Model
from extract.request import Request
from extract.run import extract_missing, plan_run
from extract.store import Store as StoredRuns
from tests.analyze.conftest import Plant
from tests.analyze.service.browsing import Served, Visit, browser, served, visit

SITE = "resid.last"
N_ROWS = 60
N_MANY = 201  # one more than there can be colours
HOSTILE = """<img src=x onerror="window.hacked = 1"><script>window.hacked = 1</script> & </p> said the label"""
LABELS = ("<b>fear</b>", "joy")
SENTENCE = "They moved the meeting again."


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all."""
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def run(tiny_model: Model, plant: Plant, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """What a random model makes of sixty texts, one of them hostile, with two kinds of probes and persistence curves."""
    texts = [f"they {'lost' if row % 2 else 'found'} the {row} letters on a {row % 7} day" for row in range(N_ROWS)]
    texts[5] = HOSTILE
    table = pa.table(
        {
            "utterance_id": [f"u{row}" for row in range(N_ROWS)],
            "text": texts,
            "label": [LABELS[row % 2] for row in range(N_ROWS)],
            "split": ["train"] * (N_ROWS - 20) + ["test"] * 20,
            "late": [None] * (N_ROWS - 20) + ["none"] * 20,
        }
    )
    directory = tmp_path_factory.mktemp("page")
    plan = plan_run(Request(tiny_model.name, Corpus("<i>texts", table), sites=SITE), str(directory / "store"))
    extract_missing(plan)
    made = open_store(str(directory / "store")).run(plan.run.run_id)
    for layers, spec in (
        (made.layers, ProbeSpec("linear")),
        (made.layers, ProbeSpec("logistic")),
        (made.layers[:1], ProbeSpec("linear", strength=0.5, balance="weights")),
        (made.layers[:1], ProbeSpec("linear")),
        (made.layers[:1], ProbeSpec("mlp", strength=1.0)),
    ):
        probed = probe_layers(made, SITE, layers, spec)
        results.save(made, probed.result)
        save_probes(made, probed)
    states = np.random.default_rng(0).standard_normal((1, 40, 3, 3)).astype(np.float32)
    continued = plant(states, {"label": list(LABELS) * 20}, offsets=(0, 1, 4))
    results.save(made, replace(measure_persistence(continued, continued, 0), run_id=made.run_id))
    return made


@pytest.fixture(scope="module")
def server(run: Run) -> Iterator[Served]:
    """It serves the store of that run, which holds no other."""
    with served(open_store(run.stored.store_location)) as started:
        yield started


@pytest.fixture
def opened(chromium: Browser, server: Served) -> "Opened":
    """Opens the page, and waits until the first layer is drawn."""
    return Opened(chromium, server)


class Opened:
    """How tests open the page."""

    def __init__(self, chromium: Browser, server: Served) -> None:
        self._chromium = chromium
        self._server = server

    def __call__(self, fragment: str = "") -> AbstractContextManager[Page]:
        return self._open(fragment)

    @contextmanager
    def _open(self, fragment: str) -> Iterator[Page]:
        with visit(self._chromium, self._server.url, fragment) as here:
            drawn(here.page, "projection")
            yield here.page


def drawn(page: Page, panel: str, what: str = "") -> Locator:
    """A panel, once it shows something."""
    section = page.locator(f"#{panel}")
    expect(section).to_have_attribute("data-drawn", re.compile(f"{re.escape(what)}$"))
    return section


def status(page: Page, panel: str) -> Locator:
    return page.locator(f"#{panel} .status")


def coloured_pixels(page: Page) -> list[int]:
    """Which pixels of the projection, row after row, are not of its background."""
    found: list[int] = page.evaluate(
        """() => {
            const canvas = document.querySelector("#projection canvas");
            const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer);
            return [...pixels.keys()].filter((pixel) => pixels[pixel] !== pixels[0]);
        }"""
    )
    return found


def redrawn(page: Page, before: list[int]) -> list[int]:
    """Those pixels once they are others."""
    for _ in range(200):
        now = coloured_pixels(page)
        if now != before:
            return now
        page.wait_for_timeout(50)
    raise AssertionError("the projection stays as it was")


def hovered(page: Page) -> tuple[int, float, float]:
    """Move the pointer onto a point of the projection: the row that the page says it is, and where it lies."""
    box = page.locator("#projection canvas").bounding_box()
    assert box is not None
    pixels = coloured_pixels(page)
    down, right = divmod(pixels[len(pixels) // 2], round(box["width"]))
    page.mouse.move(box["x"] + right, box["y"] + down)
    expect(page.locator(".tip")).to_be_visible()
    return int(page.locator(".tip").get_attribute("data-row") or -1), box["x"] + right, box["y"] + down


def listed(answers: Locator) -> tuple[list[int], list[str], list[str]]:
    """Rows, scores and texts of a list of neighbours."""
    entries = answers.locator("li button")
    rows = [int(entry.get_attribute("data-row") or -1) for entry in entries.all()]
    return rows, entries.locator(".score").all_inner_texts(), entries.locator(".text").all_inner_texts()


def texts_of(run: Run, rows: list[int]) -> list[str]:
    column: list[str] = run.utterances()["text"].to_pylist()
    return [column[row] for row in rows]


def test_a_run_shows_every_layer_its_scores_and_its_curves(run: Run, opened: Opened) -> None:
    with opened() as page:
        layers = drawn(page, "map")
        assert layers.locator("[data-layer]").count() == len(run.layers)
        assert layers.locator(".cell").count() == len(run.layers) * len(LABELS)
        assert layers.locator(".curve .band").count() == 1
        scored = next(
            probe for probe in results.probes(run) if probe.spec == ProbeSpec() and len(probe.layers) == len(run.layers)
        )
        shown = page.get_by_role("slider", name="Layer").get_attribute("aria-valuetext") or ""
        best = max(scored.layers, key=lambda entry: entry.test.accuracy.value)
        assert shown.startswith(f"Layer {best.layer}: accuracy {best.test.accuracy.value:.0%}")
        assert drawn(page, "curves").locator(".curve").count() == 4
        names = page.locator("#map select option").all_inner_texts()
        assert sorted(names) == ["linear", "linear, balance weights, strength 0.5", "logistic", "mlp, strength 1"]
        expect(page.locator("#run option")).to_have_text(f"tiny · <i>texts · {N_ROWS} rows · {run.run_id[:8]}")


def test_a_click_or_an_arrow_key_projects_a_layer_and_its_link_shows_it_again(run: Run, opened: Opened) -> None:
    with opened("#layer=0") as page:
        page.locator('[data-layer="2"]').click()
        drawn(page, "projection", " 2")
        page.get_by_role("slider", name="Layer").press("ArrowLeft")
        drawn(page, "projection", " 1")
        assert "layer=1" in page.url
        page.locator("#map select").select_option("logistic")
        drawn(page, "map", "logistic")
        fragment = page.url[page.url.index("#") :]
    with opened(fragment) as page:
        drawn(page, "projection", f"{run.run_id} {SITE} 1")
        drawn(page, "map", f"{run.run_id} {SITE} logistic")


def test_the_pointer_on_a_point_shows_the_text_of_its_row(run: Run, opened: Opened) -> None:
    with opened("#layer=1") as page:
        row, _, _ = hovered(page)
        expect(page.locator(".tip .text")).to_have_text(texts_of(run, [row])[0])
        expect(page.locator(".tip .what")).to_have_text(f"row {row} · u{row} · {LABELS[row % 2]}")


def test_the_legend_hides_and_shows_the_points_of_a_label(opened: Opened) -> None:
    with opened() as page:
        both = coloured_pixels(page)
        fear, joy = page.locator(".legend button").all()
        assert [fear.inner_text().split(), joy.inner_text().split()] == [[LABELS[0], "30"], [LABELS[1], "30"]]
        fear.click()
        expect(fear).to_have_attribute("aria-pressed", "false")
        one = redrawn(page, both)
        assert 0 < len(one) < len(both)
        joy.click()
        assert redrawn(page, one) == []
        fear.click(modifiers=["Shift"])
        expect(fear).to_have_attribute("aria-pressed", "true")
        expect(joy).to_have_attribute("aria-pressed", "false")
        assert page.url.count("hide=") == 1


def test_points_can_be_coloured_by_any_column_or_none_and_a_class_keeps_its_colour(opened: Opened) -> None:
    with opened() as page:
        colour, legend = page.get_by_label("Colour"), page.locator(".legend button")
        expect(colour.locator("option")).to_have_text(["label", "split", "late", "nothing"])
        colour.select_option("split")
        expect(legend).to_have_text(["test20", "train40"])
        of_train = legend.nth(1).get_attribute("style")
        condition = page.get_by_label("Rows where")
        condition.fill("split = 'train'")
        condition.press("Enter")
        expect(legend).to_have_text(["train40"])
        assert legend.get_attribute("style") == of_train
        condition.fill("")
        condition.press("Enter")
        colour.select_option("late")
        expect(legend).to_have_text(["none20", "no late40"])
        legend.nth(0).click()
        expect(legend.nth(1)).to_have_attribute("aria-pressed", "true")
        colour.select_option("nothing")
        expect(legend).to_have_text(["all rows60"])


def test_the_wheel_and_a_drag_change_the_view_and_a_button_brings_all_of_it_back(opened: Opened) -> None:
    with opened() as page:
        whole = coloured_pixels(page)
        _, x, y = hovered(page)
        page.mouse.wheel(0, -300)
        zoomed = redrawn(page, whole)
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x + 40, y + 20)
        page.mouse.up()
        dragged = redrawn(page, zoomed)
        assert page.locator("#neighbours li").count() == 0
        page.get_by_role("button", name="Whole view").click()
        assert redrawn(page, dragged) == whole


def test_neighbours_of_a_sentence_are_those_of_the_library(run: Run, opened: Opened) -> None:
    expected = nearest(run, SITE, 2, states_of_texts(run, SITE, 2, [SENTENCE]), 10)
    with opened("#layer=2") as page:
        page.get_by_label("A sentence").fill(SENTENCE)
        page.get_by_role("button", name="Find").click()
        rows, scores, texts = listed(drawn(page, "neighbours"))
        assert rows == expected.rows_QK[0].tolist()
        np.testing.assert_allclose([float(score) for score in scores], expected.scores_QK[0], atol=5e-4)
        assert texts == texts_of(run, rows)
        ringed = page.locator(".marks .near").evaluate_all("rings => rings.map((ring) => Number(ring.dataset.row))")
        assert sorted(ringed) == sorted(rows)
        expect(page.locator(".marks .place")).to_have_count(1)
        page.locator("#neighbours li button").nth(3).press("Enter")
        expect(page.locator("#neighbours h3")).to_contain_text(f"to row {rows[3]}:")
        expect(page.locator("#neighbours .answers")).to_be_focused()
        page.get_by_label("Colour").select_option("nothing")
        expect(page.locator("#neighbours .label").first).to_have_attribute("style", re.compile("transparent"))


def test_a_click_on_a_point_shows_the_neighbours_of_its_row(run: Run, opened: Opened) -> None:
    with opened("#layer=2&metric=euclidean") as page:
        row, x, y = hovered(page)
        page.mouse.click(x, y)
        state = run.hidden(SITE, 2, rows=[row])
        for scaling, said in (("none", "raw"), ("centred", "centred"), ("standardised", "standardised")):
            page.get_by_label("States").select_option(scaling)
            expect(page.locator("#neighbours h3")).to_contain_text(f"by distance of {said} states")
            rows, _, _ = listed(drawn(page, "neighbours"))
            seen = scaling_of(run, SITE, 2, scaling)
            expected = nearest(run, SITE, 2, state, 11, metric="euclidean", scaling=seen).rows_QK[0]
            assert rows == [other for other in expected if other != row][:10]
        expect(page.locator("#neighbours h3")).to_contain_text(texts_of(run, [row])[0][:40])
        expect(page.locator(".marks .chosen")).to_have_attribute("data-row", str(row))


def test_the_ends_of_a_direction_are_those_of_the_probe_that_is_shown_among_the_rows_that_are(run: Run, opened: Opened) -> None:
    with opened("#layer=2") as page:
        lists, which = page.locator("#neighbours .answers > div"), page.locator("#map select")
        page.get_by_label("Ends of").select_option(LABELS[0])
        for kind in ("linear", "logistic"):
            which.select_option(kind)
            expect(page.locator("#neighbours h3").first).to_have_text(f"Most “{LABELS[0]}”, probe {kind}")
            direction = probe_direction(run, SITE, 2, LABELS[0], kind=kind).vector_D
            expected = along(run, SITE, 2, direction, 10)
            assert listed(lists.nth(0))[0] == expected.top.rows_K.tolist()
            assert listed(lists.nth(1))[0] == expected.bottom.rows_K.tolist()
        page.get_by_label("Rows where").fill("row < 12")
        page.get_by_label("Rows where").press("Enter")
        expect(page.locator("#neighbours .hint")).to_contain_text("8 of them stand at both ends")
        assert listed(lists.nth(0))[0] == along(run, SITE, 2, direction, 10, rows=range(12)).top.rows_K.tolist()
        which.select_option("mlp, strength 1")
        expect(page.get_by_label("Ends of")).to_have_text("none of an MLP")
        expect(page.locator("#neighbours li")).to_have_count(0)
        assert "along=" not in page.url


def score(kind: str, metric: str, layer: int, value: float, **changes: object) -> dict[str, object]:
    """A row as /scores gives it."""
    probe = {"kind": kind, "label_column": "label", "balance": "none", "strength": None, "solver": "affectome"}
    interval = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {"site": SITE, "metric": metric, "layer": layer, "label": None, "chance": None, **probe, **interval, **changes}


def test_the_usual_probe_is_shown_first_and_one_far_below_chance_stays_on_its_axis(opened: Opened) -> None:
    of_words = {"label_column": "split"}
    rows = [
        *(score("linear", "accuracy", layer, 0.5, **of_words) for layer in range(3)),
        *(score("difference", "accuracy", layer, 0.5) for layer in range(3)),
        *(score("linear", "accuracy", layer, 0.5, balance="weights") for layer in range(3)),
        *(score("linear", "accuracy", layer, 0.5) for layer in range(2)),
        *(score("ridge", "r2", layer, (0.5, -7.0, -0.4)[layer], label_column="valence") for layer in range(3)),
    ]
    with opened() as page:
        page.route("**/scores", lambda route: route.fulfill(json={"rows": rows}))
        page.reload()
        drawn(page, "map", "linear")
        page.locator("#map select").select_option("ridge of valence")
        drawn(page, "map", "ridge of valence")
        expect(page.locator("#map .key")).to_contain_text("what is below -1 is drawn at -1")
        frame, line = page.locator("#map .empty, #map .chosen").bounding_box(), page.locator("#map .curve").last.bounding_box()
        assert frame is not None
        assert line is not None
        assert line["y"] + line["height"] <= frame["y"] + frame["height"] + 4
        expect(page.get_by_label("Ends of").locator("option")).to_have_text(["a direction", "valence"])


def test_hostile_text_stays_text_wherever_it_is_shown(run: Run, opened: Opened) -> None:
    with opened(f"#layer=1&text={quote(HOSTILE)}") as page:
        _, _, texts = listed(drawn(page, "neighbours"))
        assert texts[0] == HOSTILE
        page.locator("#projection summary").click()
        expect(page.locator("#projection table")).to_contain_text(HOSTILE)
        page.locator('#curves [data-part="label"]').select_option(LABELS[0])
        assert page.locator("img, b, i, table script").count() == 0
        assert page.evaluate("window.hacked") is None


def test_only_rows_of_the_condition_are_shown_and_a_wrong_one_is_refused_in_a_sentence(run: Run, opened: Opened) -> None:
    with opened() as page:
        condition = page.get_by_label("Rows where")
        condition.fill("split = 'test'")
        condition.press("Enter")
        expect(page.locator(".which")).to_contain_text(", 20 rows")
        page.get_by_label("A sentence").fill(SENTENCE)
        page.get_by_label("A sentence").press("Enter")
        rows, _, _ = listed(drawn(page, "neighbours"))
        assert len(rows) == 10
        assert min(rows) >= N_ROWS - 20
        condition.fill("colour = 1")
        condition.press("Enter")
        expect(status(page, "projection")).to_contain_text("colour")
        condition.fill("row < 0")
        condition.press("Enter")
        expect(page.locator("#neighbours .hint")).to_have_text("No row fulfils the condition.")
        assert page.locator(".legend button").count() == 0


def test_an_answer_that_comes_late_does_not_take_the_place_of_a_newer_one(opened: Opened) -> None:
    with opened("#layer=0") as page:
        held: list[Route] = []
        page.route("**/projection?*layer=1*", lambda route: held.append(route))
        page.locator('[data-layer="1"]').click()
        page.wait_for_timeout(200)
        page.locator('[data-layer="2"]').click()
        drawn(page, "projection", " 2")
        assert len(held) == 1
        held[0].abort()
        page.wait_for_timeout(200)
        expect(page.locator(".which")).to_contain_text("layer 2,")
        expect(status(page, "projection")).to_be_empty()


def test_a_server_that_goes_away_is_told_in_a_sentence_and_the_page_stays(chromium: Browser, run: Run) -> None:
    with served(open_store(run.stored.store_location)) as started, visit(chromium, started.url, "#layer=0") as here:
        drawn(here.page, "projection")
        started.stop()
        here.page.locator('[data-layer="2"]').click()
        expect(status(here.page, "projection")).to_contain_text("The server does not answer. Start it again")
        assert here.page.locator("[data-layer]").count() == len(run.layers)
        assert here.refused


def alone(chromium: Browser, started: Served) -> AbstractContextManager[Visit]:
    return visit(chromium, started.url)


def test_an_empty_store_says_how_to_make_a_run(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> None:
    location = str(tmp_path_factory.mktemp("empty"))
    StoredRuns.open(location, create=True)
    with served(open_store(location)) as started, alone(chromium, started) as here:
        expect(here.page.locator("#notice")).to_contain_text("holds no run yet; make one with affectome extract")


def test_a_run_without_probes_and_with_more_labels_than_colours_has_its_layers_and_says_how_to_probe_it(
    chromium: Browser, plant: Plant
) -> None:
    states = np.random.default_rng(0).standard_normal((3, N_MANY, 4)).astype(np.float32)
    run = plant(states, {"label": [f"label {row}" for row in range(N_MANY)]})
    with served(open_store(run.stored.store_location)) as started, alone(chromium, started) as here:
        drawn(here.page, "projection", " 1")
        expect(status(here.page, "projection")).to_contain_text("has 201 values; colour by one with at most 200")
        expect(here.page.locator(".legend button")).to_have_text(["all rows201"])
        expect(status(here.page, "map")).to_contain_text(f"affectome probe STORE {run.run_id} --site {SITE}")
        expect(status(here.page, "curves")).to_contain_text(f"affectome persistence STORE {run.run_id}")
        here.page.locator('[data-layer="2"]').click()
        drawn(here.page, "projection", " 2")
        row, _, _ = hovered(here.page)
        expect(here.page.locator(".tip .what")).to_contain_text(f"row {row} · u{row}")


def test_another_run_is_shown_as_a_whole_once_it_is_picked(chromium: Browser, tiny_model: Model, tmp_path: Path) -> None:
    table = pa.table({"utterance_id": [*"abcdefgh"], "text": ["one", "two", "three", "four", "five", "six", "seven", "eight"]})
    corpus = Corpus("numbers", table)
    requests = [Request(tiny_model.name, corpus.head(5), sites=SITE), Request(tiny_model.name, corpus, sites="resid.mean")]
    plans = [plan_run(request, str(tmp_path / "store")) for request in requests]
    for plan in plans:
        extract_missing(plan)
    with served(open_store(str(tmp_path / "store"))) as started, alone(chromium, started) as here:
        drawn(here.page, "projection")
        for plan, site, n_rows in zip(plans, (SITE, "resid.mean"), (5, 8), strict=True):
            here.page.get_by_label("Run").select_option(plan.run.run_id)
            expect(here.page.locator(".which")).to_have_text(re.compile(rf"{re.escape(site)}, layer \d, {n_rows} rows"))
            expect(here.page.locator("#facts code")).to_have_text(plan.run.run_id)
            assert f"run={plan.run.run_id}" in here.page.url
        here.page.evaluate("location.hash = '#run=zzz&layer=0'")
        expect(here.page.locator("#notice")).to_contain_text("no run zzz; choose one of its 2")
        here.page.locator('[data-layer="1"]').click()
        drawn(here.page, "projection", f"{plans[1].run.run_id} resid.mean 1")
        expect(here.page.locator("#notice")).to_be_hidden()
        assert f"run={plans[1].run.run_id}" in here.page.url


def test_results_that_are_damaged_are_named_and_the_rest_is_shown(chromium: Browser, plant: Plant) -> None:
    run = plant(np.random.default_rng(0).standard_normal((2, 40, 3)).astype(np.float32), {"label": list(LABELS) * 20})
    results.save(run, probe_layers(run, SITE, run.layers).result)
    (kept,) = Path(run.stored.objects.url("analysis")).glob("*.json")
    kept.write_text(kept.read_text().replace(": ", ": !"))
    with served(open_store(run.stored.store_location)) as started, alone(chromium, started) as here:
        expect(status(here.page, "map")).to_contain_text("is damaged; remove it and measure again")
        drawn(here.page, "projection")
        assert here.page.locator("[data-layer]").count() == 2


def test_a_site_on_a_grid_is_projected_at_the_offset_that_is_chosen(chromium: Browser, plant: Plant) -> None:
    run = plant(np.random.default_rng(0).standard_normal((2, 8, 3, 4)).astype(np.float32), {}, offsets=(0, 1, 4))
    with served(open_store(run.stored.store_location)) as started, alone(chromium, started) as here:
        drawn(here.page, "projection")
        expect(here.page.locator(".which")).to_contain_text("offset 0, 8 rows")
        here.page.locator('[data-part="at"]').select_option("4")
        expect(here.page.locator(".which")).to_contain_text("offset 4, 8 rows")


def test_a_run_that_is_not_complete_says_so(chromium: Browser, plant: Plant) -> None:
    run = plant(np.zeros((2, 8, 4), np.float32), {"label": ["joy", "fear"] * 4}, rows_per_shard=4, missing=[1])
    with served(open_store(run.stored.store_location)) as started, alone(chromium, started) as here:
        expect(here.page.locator("#notice")).to_contain_text("not complete")
        expect(here.page.locator("#run option")).to_contain_text("incomplete")
        expect(status(here.page, "projection")).to_contain_text("missing")
        assert here.page.locator("[data-layer]").count() == 2


def test_a_server_with_a_token_shows_the_page_once_signed_in(chromium: Browser, run: Run) -> None:
    token = "of-more-than-sixteen-characters"  # noqa: S105 - of this test alone
    with served(open_store(run.stored.store_location), token) as started, visit(chromium, started.url) as here:
        here.page.get_by_label("Token").fill(token)
        here.page.get_by_role("button").click()
        drawn(here.page, "projection")
        here.page.context.clear_cookies()
        here.page.locator('[data-layer="1"]').click()
        expect(here.page.get_by_label("Token")).to_be_visible()

"""A report stands alone, says what the results say, and takes nothing that it shows for markup."""

import re
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from analyze import plots
from analyze.curves import ALL_EMOTIONS, Curve, HalfLife
from analyze.geometry import GeometryResult, measure_geometry
from analyze.persistence import READERS, PersistenceResult
from analyze.probes import Control, LayerScores, ProbeResult, ProbeSpec
from analyze.projection import Projection
from analyze.query import Run
from analyze.report import write_report as write_evidence
from analyze.report.evidence import Evidence
from analyze.report.findings import first_readable, headline
from analyze.report.persistence import half_life_words
from analyze.scores import Interval, Scores
from analyze.transfer import TransferResult, by_values, measure_transfer
from tests.analyze.conftest import Plant

EMOTIONS = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
HOSTILE = "<script>alert('$x_1$')</script>\"&\n_"
PICTURES = ("layer-map.png", "persistence.png", "confusion.png", "projection.png", "how.png", "contrast.png")
TABLES = ("probes", "persistence", "geometry", "transfer")


class Elements(HTMLParser):
    """Every start tag of a page, and all its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def write_report(
    run: Run,
    probes: Sequence[ProbeResult],
    persistence: Sequence[PersistenceResult],
    projection: Projection,
    directory: Path,
    geometries: Sequence[GeometryResult] = (),
    transfers: Sequence[TransferResult] = (),
) -> Path:
    return write_evidence(run, Evidence(probes, projection, persistence, geometries, transfers), directory)


def around(value: float, half: float = 0.04) -> Interval:
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def new_scores(accuracy: float, classes: Sequence[str]) -> Scores:
    hits, n_classes = round(20 * accuracy), len(classes)
    confusion = [[0] * n_classes for _ in classes]
    for label in range(n_classes):
        confusion[label][label] = hits
        confusion[label][(label + 1) % n_classes] += 20 - hits
    areas = tuple(around(0.5 + accuracy / 2 - 0.01 * label, 0.02) for label in range(n_classes))
    rows = tuple(tuple(row) for row in confusion)
    return Scores(
        accuracy=around(accuracy),
        macro_f1=around(accuracy - 0.01),
        auroc=around(0.5 + accuracy / 2),
        class_auroc=areas,
        log_loss=around(1 - accuracy),
        calibration_error=around(0.1),
        confusion=rows,
    )


def new_probe(
    site: str = "resid.last",
    classes: tuple[str, ...] = EMOTIONS,
    accuracies: Sequence[float] = (0.2, 0.45, 0.71, 0.69),
    best_layer: int = 2,
    control: float = 0.15,
    layers: Sequence[int] | None = None,
) -> ProbeResult:
    entries = [
        LayerScores(
            layer=layer,
            test=new_scores(accuracy, classes),
            control=Control(around(control), around(0.5)),
            task=around(0.25),
            selectivity=Interval(accuracy - 0.25, accuracy - 0.3, accuracy - 0.2),
            affect=new_scores(0.5 + accuracy / 2, ("neutral", "emotion")) if "neutral" in classes else None,
            strength=0.1,
            selection_accuracy=0.9 if layer == best_layer else 0.1,
        )
        for layer, accuracy in zip(layers or range(len(accuracies)), accuracies, strict=True)
    ]
    return ProbeResult(
        run_id="0" * 16,
        site=site,
        spec=ProbeSpec(),
        classes=classes,
        n_train=1106,
        n_test=20 * len(classes),
        n_test_situations=15 * len(classes),
        n_unlabelled=3,
        n_other_split=4,
        split="the corpus's own",
        chance=1 / len(classes),
        layers=tuple(entries),
        best_layer=best_layer,
        where=None,
    )


def new_persistence(emotions: tuple[str, ...] = EMOTIONS, offsets: tuple[int, ...] = (0, 1, 4, 32, 400)) -> PersistenceResult:
    half_lives = {
        "refit": HalfLife(None, 61.0, None, above_chance=True),
        "offset-0": HalfLife(48.7, 37.4, None, above_chance=True),
        "offset-aware": HalfLife(None, 70.0, None, above_chance=True),
        "shuffled": HalfLife(None, None, None, above_chance=False),
    }
    start = {"refit": 0.9, "offset-0": 0.88, "offset-aware": 0.89, "shuffled": 0.5}
    slope = {"refit": 0.01, "offset-0": 0.07, "offset-aware": 0.02, "shuffled": 0.0}
    auroc = {reader: tuple(around(start[reader] - slope[reader] * i) for i in range(len(offsets))) for reader in READERS}
    curves = [
        Curve(name, reader, auroc[reader], around(start[reader] - 0.5), half_lives[reader])
        for reader in READERS
        for name in (ALL_EMOTIONS, *emotions)
    ]
    return PersistenceResult(
        run_id="0" * 16,
        continued_run_id="fedcba9876543210",
        site="resid.offset",
        layer=2,
        kind="linear",
        offsets=offsets,
        emotions=emotions,
        n_utterances=168,
        n_at=(168,) * len(offsets),
        curves=tuple(curves),
        beyond_words=None,
        decoding=None,
    )


def new_projection(classes: tuple[str, ...] = EMOTIONS) -> Projection:
    places = np.random.default_rng(0).standard_normal((2, 140, 2))
    states, probabilities = (tuple((float(x), float(y)) for x, y in plane) for plane in places)
    truth = tuple(index % len(classes) for index in range(140))
    return Projection("resid.last", 2, classes, truth, states, (0.11, 0.05), probabilities, (0.4, 0.2))


@pytest.fixture(scope="module")
def run(plant: Plant) -> Run:
    states = np.random.default_rng(0).standard_normal((4, 40, 3)).astype(np.float32)
    return plant(states, {"label": ["joy", "fear"] * 20}, rows_per_shard=16)


@pytest.fixture(scope="module")
def told_twice(plant: Plant) -> Run:
    """A run of seven emotions, each told with its keyword and without; what tells them apart lies in layers 2 and 3."""
    rng, truth = np.random.default_rng(0), np.arange(560) // 2 % 7
    states = rng.standard_normal((4, 560, 10)) + np.array([0, 0, 2, 2])[:, None, None] * np.eye(7, 10)[truth]
    columns: dict[str, Sequence[object]] = {
        "label": [EMOTIONS[label] for label in truth],
        "keyword": [index % 2 == 0 for index in range(560)],
        "pair_id": [str(index // 2) for index in range(560)],
    }
    return plant(states.astype(np.float32), columns)


@pytest.fixture(scope="module")
def geometry(told_twice: Run) -> GeometryResult:
    return measure_geometry(told_twice, "resid.last", told_twice.layers)


@pytest.fixture(scope="module")
def transfer(told_twice: Run) -> TransferResult:
    return measure_transfer(by_values(told_twice, "keyword"), "resid.last", told_twice.layers)


@pytest.fixture(scope="module")
def full(run: Run, geometry: GeometryResult, transfer: TransferResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with two sites and everything that can be measured."""
    probes = [new_probe(), new_probe("resid.mean", accuracies=(0.5, 0.6, 0.7, 0.74), best_layer=3)]
    directory = tmp_path_factory.mktemp("report") / "new" / "deep"
    return write_report(run, probes, [new_persistence()], new_projection(), directory, [geometry], [transfer])


def text_of(path: Path) -> str:
    return Elements(path.read_text()).text


def test_the_page_fetches_nothing(full: Path) -> None:
    page = full.read_text()
    for tag, attributes in Elements(page).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "poster", "background"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import|https?://", page)


def test_pictures_are_embedded_and_lie_beside_the_page(full: Path) -> None:
    images = [attributes for tag, attributes in Elements(full.read_text()).tags if tag == "img"]
    assert len(images) == len(PICTURES)
    assert all((attributes["src"] or "").startswith("data:image/png;base64,") and attributes["alt"] for attributes in images)
    assert {path.name for path in full.parent.iterdir()} == {"report.html", "tables", *PICTURES}


def test_tables_hold_the_numbers_of_the_page_a_row_for_each_interval(
    full: Path, geometry: GeometryResult, transfer: TransferResult
) -> None:
    found = {path.stem: pyarrow.parquet.read_table(path) for path in (full.parent / "tables").iterdir()}
    assert set(found) == set(TABLES)
    best = {"site": "resid.last", "layer": 2, "metric": "accuracy", "label": None}
    (row,) = [row for row in found["probes"].to_pylist() if best.items() <= row.items()]
    assert Interval(row["value"], row["low"], row["high"]) == new_probe().best.test.accuracy
    at_end = {"reader": "refit", "label": "all", "offset": 400, "metric": "auroc"}
    (point,) = [row["value"] for row in found["persistence"].to_pylist() if at_end.items() <= row.items()]
    assert point == new_persistence().curve(ALL_EMOTIONS, "refit").auroc[-1].value
    between = {row["layer"]: row["value"] for row in found["geometry"].to_pylist() if row["metric"] == "between"}
    assert between == {entry.layer: entry.between.value for entry in geometry.layers}
    losses = [row["value"] for row in found["transfer"].to_pylist() if row["metric"] == "loss"]
    assert losses == [cell.loss.value for cell in transfer.cells]


def test_the_three_questions_are_answered_at_the_top(full: Path) -> None:
    text = text_of(full)
    top = text[: text.index("Layer by layer")]
    for question in ("How does it lay the emotions out?", "Where can the emotion be read?", "For how long does the emotion"):
        assert question in top
    assert "of the variance of standardised states lies between the labels, more than in 99.8% of 500 permutations" in top
    assert "After 400 tokens of the same neutral text" in top


def test_what_was_not_measured_is_said_to_be_so_with_the_command_that_does_it(run: Run, tmp_path: Path) -> None:
    text = text_of(write_report(run, [new_probe()], [], new_projection(), tmp_path))
    assert text.count("Not measured for this run; how to is told below.") == 2
    assert f"affectome geometry {run.stored.store_location} {run.run_id} --site resid.last" in text
    assert "What carries over" not in text
    assert not (tmp_path / "how.png").exists()
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == {"probes"}


def test_what_carries_over_says_both_questions_of_both_directions(full: Path) -> None:
    text = text_of(full)
    assert "the probe trained without keyword names" in text
    assert "the probe trained with keyword names" in text
    assert text.count("Emotion or neutral:") == 2


def test_a_report_of_less_removes_the_pictures_and_tables_of_more_and_nobody_elses(
    run: Run, geometry: GeometryResult, tmp_path: Path
) -> None:
    (tmp_path / "tables").mkdir()
    others = [tmp_path / name for name in ("how-to.png", "persistence-notes.png", "tables/results.parquet", "contrast.svg")]
    for path in others:
        path.write_bytes(b"a user's own")
    write_report(run, [new_probe()], [new_persistence()], new_projection(), tmp_path, [geometry])
    write_report(run, [new_probe()], [], new_projection(), tmp_path)
    left = {path.name for path in tmp_path.rglob("*.*")}
    ours = {"report.html", "layer-map.png", "confusion.png", "projection.png", "probes.parquet"}
    assert left == ours | {path.name for path in others}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_a_png_that_is_not_blank(full: Path, name: str) -> None:
    with Image.open(full.parent / name) as image:
        assert image.format == "PNG"
        assert image.width > 900
        assert image.height > 500
        shades = np.asarray(image.convert("L"))
    assert shades.min() < 80
    assert shades.max() == 255


def test_the_headline_says_the_numbers_of_the_best_layer(full: Path) -> None:
    said = headline(new_probe(), 3)
    assert said == (
        "At layer 2 of 3, a linear probe on resid.last names the emotion of 71% of 140 unseen utterances "
        "(95% interval 67\N{EN DASH}75%); chance is 14%, a probe fitted to shuffled labels gets 15%."
    )
    assert said in text_of(full)


def test_the_headline_is_of_the_probe_ahead_on_the_selection_part_not_on_the_test_split(run: Run, tmp_path: Path) -> None:
    chosen, lucky = new_probe(accuracies=(0.2, 0.3, 0.5, 0.4)), new_probe("resid.mean", accuracies=(0.9, 0.9, 0.95, 0.9))
    lucky = replace(lucky, layers=tuple(replace(entry, selection_accuracy=0.2) for entry in lucky.layers))
    text = text_of(write_report(run, [lucky, chosen], [], new_projection(), tmp_path))
    assert headline(chosen, 3) in text
    assert "more than resid.last, although resid.last was ahead" in text


def test_a_probe_no_better_than_its_control_claims_nothing() -> None:
    probe = new_probe(accuracies=(0.15, 0.16, 0.17, 0.16))
    assert "nothing is shown to be readable" in headline(probe, 3)
    assert first_readable(probe) is None


def test_readable_from_the_first_layer_above_its_control_interval_and_all() -> None:
    found = first_readable(new_probe(accuracies=(0.2, 0.22, 0.71, 0.69)))
    assert found is not None
    assert found.layer == 2


def test_sites_whose_intervals_overlap_are_not_ranked(full: Path) -> None:
    text = text_of(full)
    assert "these results do not say which of resid.last and resid.mean is better" in text


def test_layer_0_of_a_mean_site_is_called_a_bag_of_words(full: Path) -> None:
    assert "resid.mean: layer 0 is the mean of the token embeddings: a bag of words" in text_of(full)


def test_every_layer_is_in_the_tables(full: Path) -> None:
    page = full.read_text()
    for value in ("20.0% (16.0\N{EN DASH}24.0)", "45.0% (41.0\N{EN DASH}49.0)", "74.0% (70.0\N{EN DASH}78.0)"):
        assert value in page


def test_half_lives_are_told_as_values_bounds_or_absence(full: Path) -> None:
    assert half_life_words(HalfLife(48.7, 37.4, None, above_chance=True), 400) == "49 tokens"
    assert half_life_words(HalfLife(None, 61.0, None, above_chance=True), 400) == "more than 400"
    assert half_life_words(HalfLife(None, None, None, above_chance=False), 400) == "not above chance at offset 0"
    text = text_of(full)
    assert "49 (37 to > 400)" in text
    assert "more than 400 (61 to > 400)" in text


def test_what_was_run_is_there_in_full(full: Path, run: Run) -> None:
    text, identity = text_of(full), run.manifest.identity
    for fact in (run.run_id, identity.weights, identity.tokenizer, identity.corpus, "fedcba9876543210", "40 rows"):
        assert fact in text
    assert "1,106 train, 140 test" in text
    assert "3 utterances without a single label, 4 of another split" in text
    assert "40 tokens, 3 receipts" in text
    assert "--limit 40 --sites resid.last --layers all" in text
    assert "# what run fedcba9876543210 was continued with is not in this store" in text
    assert f"affectome report {run.stored.store_location} {run.run_id}" in text


def test_only_the_built_in_model_is_called_dequantised(full: Path, run: Run, tmp_path: Path) -> None:
    assert "dequantised" not in text_of(full)
    built_in = Run(replace(run.stored, manifest=replace(run.manifest, model="smollm2-135m-instruct", corpus="builtin")))
    text = text_of(write_report(built_in, [new_probe()], [], new_projection(), tmp_path))
    assert "dequantised from a 4-bit GGUF" in text
    assert "what the author of each utterance intended" in text


def test_without_persistence_the_report_says_so_and_how_to_measure_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "persistence.png").write_bytes(b"of an earlier report")
    text = text_of(write_report(run, [new_probe()], [], new_projection(), tmp_path))
    assert "Persistence was not measured" in text
    assert f"affectome persistence {run.stored.store_location} {run.run_id}" in text
    assert not (tmp_path / "persistence.png").exists()
    assert "half-life" not in text


def test_hostile_names_and_labels_are_shown_as_they_are(run: Run, tmp_path: Path) -> None:
    manifest = replace(run.manifest, corpus=HOSTILE, model=HOSTILE)
    classes = ("$\\frac{", HOSTILE, "_hidden")
    path = write_report(
        Run(replace(run.stored, manifest=manifest)),
        [new_probe(classes=classes)],
        [new_persistence(classes)],
        new_projection(classes),
        tmp_path,
    )
    elements = Elements(path.read_text())
    assert "script" not in {tag for tag, _ in elements.tags}
    assert " ".join(HOSTILE.split()) in elements.text
    assert "$\\frac{" in elements.text


@pytest.mark.parametrize("classes", [("no", "yes"), tuple(f"label {index}" for index in range(28))])
def test_other_label_sets_make_a_report(run: Run, tmp_path: Path, classes: tuple[str, ...]) -> None:
    path = write_report(
        run,
        [new_probe(classes=classes)],
        [new_persistence(classes), replace(new_persistence(classes), continued_run_id="0123456789abcdef")],
        new_projection(classes),
        tmp_path,
    )
    assert "names the label of 71%" in text_of(path)
    assert (tmp_path / "persistence-2.png").read_bytes().startswith(b"\x89PNG")


def test_a_single_layer_and_sparse_layers_can_be_drawn(run: Run, tmp_path: Path) -> None:
    single = new_probe(accuracies=(0.7,), best_layer=8, layers=(8,))
    sparse = new_probe("resid.mean", accuracies=(0.3, 0.6, 0.7), best_layer=28, layers=(0, 8, 28))
    text = text_of(write_report(run, [single, sparse], [], new_projection(), tmp_path))
    assert "--layers 0,8,28" in text


def test_a_report_without_probes_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="affectome probe"):
        write_report(run, [], [], new_projection(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_every_emotion_has_a_colour_of_its_own() -> None:
    assert len(set(plots.class_colours(EMOTIONS).values())) == len(EMOTIONS)
    assert plots.class_colours(("joy", "fear")) == {name: plots.EMOTION_COLOURS[name] for name in ("joy", "fear")}

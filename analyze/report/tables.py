"""The numbers of a report as Parquet: one long table for each analysis, an interval a row.

Wide tables, a column for each score, were rejected: whoever joins several runs wants rows that stack. The same tables over all
runs of a store are what SQL is asked of (analyze.views), so their columns have the same types whether they hold rows or none.
"""

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from analyze.geometry import GeometryResult
from analyze.multilabel import MultiLabelResult
from analyze.persistence import PersistenceResult
from analyze.probes import ProbeResult
from analyze.prompting import PromptingResult
from analyze.scores import Interval
from analyze.transfer import TransferResult
from analyze.valued import ValueResult
from analyze.zeroshot import ZeroShotResult

Row = dict[str, str | int | float | None]

_COUNTS = frozenset(("layer", "n", "offset"))
_NUMBERS = frozenset(("value", "low", "high", "chance", "p_value", "strength"))


def probe_table(probes: Iterable[ProbeResult | MultiLabelResult | ValueResult]) -> pa.Table:
    """run_id, site, kind, label_column (what was read), balance, strength (null where cross-validation chose it), solver,
    layer, metric, label (null for all), value, low, high, chance (null where there is none), n."""
    columns = "run_id site kind label_column balance strength solver layer metric label value low high chance n"
    return _table(columns, (row for probe in probes for row in _rows_of_any(probe)))


def persistence_table(persistence: Iterable[PersistenceResult]) -> pa.Table:
    """run_id, continued_run_id, site, layer, kind, reader, label, offset (null for all), metric, value, low, high, n."""
    columns = "run_id continued_run_id site layer kind reader label offset metric value low high n"
    return _table(columns, (row for result in persistence for row in _persistence_rows(result)))


def geometry_table(geometries: Iterable[GeometryResult]) -> pa.Table:
    """run_id, site, layer, metric, label, other (null where there is none), value, low, high, p_value, n."""
    columns = "run_id site layer metric label other value low high p_value n"
    return _table(columns, (row for result in geometries for row in _geometry_rows(result)))


def transfer_table(transfers: Iterable[TransferResult]) -> pa.Table:
    """run_id, site, kind, layer, train, test, metric, value, low, high, n."""
    columns = "run_id site kind layer train test metric value low high n"
    return _table(columns, (row for result in transfers for row in _transfer_rows(result)))


def zero_shot_table(zero_shots: Iterable[ZeroShotResult]) -> pa.Table:
    """run_id, asked_run_id, metric, label (null for all), value, low, high, chance, n."""
    columns = "run_id asked_run_id metric label value low high chance n"
    return _table(columns, (row for result in zero_shots for row in _zero_shot_rows(result)))


def prompting_table(promptings: Iterable[PromptingResult]) -> pa.Table:
    """run_id, site, layer, start (what it is held against, or null), condition, offset, metric, label, value, low, high,
    p_value, n."""
    columns = "run_id site layer start condition offset metric label value low high p_value n"
    return _table(columns, (row for result in promptings for row in _prompting_rows(result)))


def _table(columns: str, rows: Iterable[Row]) -> pa.Table:
    names = columns.split()
    kept = list(rows)
    assert all(row.keys() <= set(names) for row in kept), "a table has a column for everything that a row says"
    return pa.Table.from_pylist(kept, schema=pa.schema([(name, _type(name)) for name in names]))


def _type(column: str) -> pa.DataType:
    if column in _COUNTS:
        return pa.int64()
    return pa.float64() if column in _NUMBERS else pa.string()


def _span(interval: Interval | None) -> Row:
    if interval is None:
        return {"value": None, "low": None, "high": None}
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _rows_of_any(probe: ProbeResult | MultiLabelResult | ValueResult) -> Iterator[Row]:
    spec = probe.spec
    base: Row = {
        "run_id": probe.run_id,
        "site": probe.site,
        "kind": spec.kind,
        "label_column": spec.column,
        "balance": spec.balance,
        "strength": spec.strength,
        "solver": spec.solver,
        "n": probe.n_test,
    }
    match probe:
        case ProbeResult():
            rows = _probe_rows(probe)
        case MultiLabelResult():
            rows = _set_rows(probe)
        case ValueResult():
            rows = _value_rows(probe)
    return (base | row for row in rows)


def _probe_rows(probe: ProbeResult) -> Iterator[Row]:
    for entry in probe.layers:
        scores: Sequence[tuple[str, str | None, Interval | None]] = (
            ("accuracy", None, entry.test.accuracy),
            ("macro_f1", None, entry.test.macro_f1),
            ("auroc", None, entry.test.auroc),
            *(("auroc", label, area) for label, area in zip(probe.classes, entry.test.class_auroc, strict=True)),
            ("log_loss", None, entry.test.log_loss),
            ("calibration_error", None, entry.test.calibration_error),
            ("shuffled_accuracy", None, entry.control.accuracy),
            ("shuffled_auroc", None, entry.control.auroc),
            ("control_task_accuracy", None, entry.task),
            ("selectivity", None, entry.selectivity),
            ("affect_auroc", None, None if entry.affect is None else entry.affect.auroc),
        )
        for metric, label, interval in scores:
            row: Row = {"layer": entry.layer, "metric": metric, "label": label, "chance": probe.chance}
            yield row | _span(interval)


def _set_rows(probe: MultiLabelResult) -> Iterator[Row]:
    for entry in probe.layers:
        scores: Sequence[tuple[str, str | None, Interval]] = (
            ("auroc", None, entry.test.auroc),
            *(("auroc", label, area) for label, area in zip(probe.classes, entry.test.label_auroc, strict=True)),
            ("macro_f1", None, entry.test.macro_f1),
            *(("f1", label, score) for label, score in zip(probe.classes, entry.test.label_f1, strict=True)),
            ("micro_f1", None, entry.test.micro_f1),
            ("exact", None, entry.test.exact),
            ("shuffled_auroc", None, entry.control.auroc),
            ("shuffled_macro_f1", None, entry.control.macro_f1),
            ("shuffled_micro_f1", None, entry.control.micro_f1),
            ("shuffled_exact", None, entry.control.exact),
        )
        for metric, label, interval in scores:
            row: Row = {"layer": entry.layer, "metric": metric, "label": label}
            yield row | {"chance": probe.chance if metric.endswith("exact") else None} | _span(interval)


def _value_rows(probe: ValueResult) -> Iterator[Row]:
    for entry in probe.layers:
        scores = (
            ("r2", entry.test.r2),
            ("correlation", entry.test.correlation),
            ("shuffled_r2", entry.control.r2),
            ("shuffled_correlation", entry.control.correlation),
        )
        for metric, interval in scores:
            row: Row = {"layer": entry.layer, "metric": metric, "label": None, "chance": None}
            yield row | _span(interval)


def _persistence_rows(result: PersistenceResult) -> Iterator[Row]:
    base: Row = {
        "run_id": result.run_id,
        "continued_run_id": result.continued_run_id,
        "site": result.site,
        "layer": result.layer,
        "kind": result.kind,
    }
    for curve in result.curves:
        own: Row = base | {"reader": curve.reader, "label": curve.emotion}
        for offset, n, point in zip(result.offsets, result.n_at, curve.auroc, strict=True):
            yield own | {"offset": offset, "metric": "auroc"} | _span(point) | {"n": n}
        whole: Row = {"offset": None, "n": result.n_utterances}
        yield own | {"metric": "mean_above_chance"} | _span(curve.area) | whole
        life = curve.half_life
        yield own | {"metric": "half_life_tokens", "value": life.tokens, "low": life.low, "high": life.high} | whole
    for offset, n, beyond in zip(result.offsets, result.n_at, result.beyond_words or (), strict=False):
        yield base | {"reader": "refit", "label": "all", "offset": offset, "metric": "beyond_words"} | _span(beyond) | {"n": n}


def _geometry_rows(result: GeometryResult) -> Iterator[Row]:
    for entry in result.layers:
        base: Row = {"run_id": result.run_id, "site": result.site, "layer": entry.layer, "n": result.n_utterances}
        alone: Row = {"label": None, "other": None, "p_value": None}
        yield base | alone | {"metric": "between", "p_value": entry.p_value} | _span(entry.between)
        yield base | alone | {"metric": "silhouette"} | _span(entry.silhouette)
        if entry.grouping is not None:
            yield base | alone | {"metric": "paper_pairs"} | _span(entry.grouping.contrast)
        for one, row in zip(result.classes, entry.cosines, strict=True):
            for other, cosine in zip(result.classes, row, strict=True):
                pair: Row = {"label": one, "other": other, "value": cosine, "low": None, "high": None}
                yield base | alone | {"metric": "cosine"} | pair


def _transfer_rows(result: TransferResult) -> Iterator[Row]:
    n_test = dict(zip(result.sources, result.n_test, strict=True))
    run_of = dict(zip(result.sources, result.run_ids, strict=True))
    for cell in result.cells:
        base: Row = {"run_id": run_of[cell.train], "site": result.site, "kind": result.spec.kind, "layer": cell.layer}
        base |= {"train": cell.train, "test": cell.test, "n": n_test[cell.test]}
        yield base | {"metric": "accuracy"} | _span(cell.accuracy)
        yield base | {"metric": "auroc"} | _span(cell.auroc)
        yield base | {"metric": "loss"} | _span(cell.loss)
        yield base | {"metric": "affect_auroc"} | _span(cell.affect_auroc)


def _zero_shot_rows(result: ZeroShotResult) -> Iterator[Row]:
    base: Row = {"run_id": result.run_id, "asked_run_id": result.asked_run_id}
    beside = result.beside
    scores: Sequence[tuple[str, str | None, Interval | None]] = (
        ("coverage", None, result.coverage),
        ("accuracy", None, result.accuracy),
        ("accuracy_of_valid", None, result.accuracy_of_valid),
        ("macro_f1", None, result.macro_f1),
        *(("recall", label, recall) for label, recall in zip(result.classes, result.recall, strict=True)),
        ("probe_accuracy", None, None if beside is None else beside.accuracy),
        ("probe_less_zero_shot", None, None if beside is None else beside.difference),
        ("probe_less_zero_shot_of_valid", None, None if beside is None else beside.difference_of_valid),
    )
    for metric, label, interval in scores:
        more: Row = {"chance": result.chance, "n": result.n_utterances}
        yield base | {"metric": metric, "label": label} | _span(interval) | more


def _prompting_rows(result: PromptingResult) -> Iterator[Row]:
    none: Row = {"site": None, "layer": None, "start": None, "offset": None, "label": None, "p_value": None}
    base: Row = {"run_id": result.run_id} | none | {"n": result.n_utterances}
    for reading in result.readings:
        own: Row = base | {"site": reading.site, "layer": reading.layer, "condition": reading.condition}
        yield own | {"metric": "accuracy"} | _span(reading.accuracy)
        yield own | {"metric": "auroc"} | _span(reading.auroc)
        yield own | {"metric": "change", "start": result.conditions[0].name} | _span(reading.change)
        yield own | {"metric": "first_accuracy"} | _span(reading.first_accuracy)
        yield own | {"metric": "loss"} | _span(reading.loss)
    for shift in result.shifts:
        moved: Row = base | {"site": shift.site, "layer": shift.layer, "start": shift.start, "condition": shift.end}
        yield moved | {"metric": "distance", "p_value": shift.p_value} | _span(shift.distance)
        for label, move in zip(result.classes, shift.moves, strict=True):
            yield moved | {"metric": "move", "label": label} | _span(move)
    for place in result.along:
        reached: Row = {"layer": place.layer, "condition": place.condition, "offset": place.offset, "n": place.n_utterances}
        yield base | reached | {"metric": "reply_auroc"} | _span(place.auroc)
    for reply in result.replies:
        said: Row = base | {"condition": reply.condition}
        yield said | {"metric": "reply_tokens"} | _span(reply.n_tokens)
        yield said | {"metric": "reply_ended"} | _span(reply.ended)
        yield said | {"metric": "words_accuracy"} | _span(reply.accuracy)
        for label, mean in zip(result.classes, reply.probability, strict=True):
            yield said | {"metric": "words_probability", "label": label} | _span(mean)

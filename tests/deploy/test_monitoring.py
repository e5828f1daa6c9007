"""Rules and dashboard ask for what is exported, with labels that are there, and alerts fire when they should."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.dashboard.consts import GPU_TAG_KEYS, NODE_TAG_KEYS
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from cluster.events import AttemptFailed
from cluster.metrics import _OWN_TAGS, _TAGS, COUNTERS, GAUGES, HISTOGRAMS, PREFIX
from tests.deploy.files import DEPLOY
from tests.deploy.queries import Query, dashboard, panel_queries, rule_queries, rules, variable_queries

_OURS = {f"ray_{PREFIX}{name}": {*_TAGS, *_OWN_TAGS.get(name, ())} for name in (*COUNTERS, *GAUGES)}
_BUCKETS = {f"ray_{PREFIX}{name}_bucket": {*_TAGS, "le"} for name in HISTOGRAMS}
_RAYS = {f"ray_{name}": {*NODE_TAG_KEYS, *GPU_TAG_KEYS} for name in METRICS_GAUGES}
_RECORDED = {rule["record"]: set(_TAGS) for rule in rules() if "record" in rule}
_KNOWN: dict[str, set[str]] = _OURS | _BUCKETS | _RAYS | _RECORDED
_BY_PROMETHEUS = {"instance", "job"}
_QUERIES = [*rule_queries(), *panel_queries()]


def promtool(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Prometheus' own checker, where there is one."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not on PATH (Debian: apt install prometheus)")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, cwd=cwd)


def not_there(query: Query) -> set[str]:
    """Metrics that a query asks for and nobody exports, and labels that a metric does not have."""
    known = {metric: labels | _BY_PROMETHEUS for metric, labels in _KNOWN.items()}
    labels = {f"{metric}: {label}" for metric, wanted in query.labels().items() for label in wanted - known.get(metric, set())}
    return labels | query.metrics() - set(known)


@pytest.mark.parametrize("query", _QUERIES, ids=str)
def test_queries_ask_for_metrics_that_are_exported_with_labels_that_are_there(query: Query) -> None:
    assert not not_there(query)


@pytest.mark.parametrize("query", _QUERIES, ids=str)
def test_rates_are_of_counters_and_of_nothing_else(query: Query) -> None:
    counters = {f"ray_{PREFIX}{name}" for name in COUNTERS} | set(_BUCKETS)
    used = {metric for function, metric in query.ranges() if function in ("rate", "increase")}
    assert used <= counters
    assert {metric for function, metric in query.ranges() if function == "last_over_time"} & counters == set()


@pytest.mark.parametrize(
    "mistake", ["sum by (run, modell) (ray_affectome_queue_depth)", "ray_affectome_rows", 'ray_affectome_workers{kind="busy"}']
)
def test_a_query_with_a_mistake_is_found(mistake: str) -> None:
    assert not_there(Query("mistake", mistake))


def test_retries_are_told_apart_by_reasons_that_there_are() -> None:
    (kinds,) = [field for name, field in AttemptFailed.__annotations__.items() if name == "kind"]
    (alert,) = [rule for rule in rules() if rule.get("alert") == "AffectomeManyRetries"]
    assert 'reason=~"error|death"' in alert["expr"]
    assert {"error", "death", "lost"} == set(kinds.__args__)


def test_everything_that_affectome_measures_is_on_the_dashboard() -> None:
    shown = {metric for query in panel_queries() for metric in query.metrics()}
    unseen = {name for name in _OURS | _BUCKETS if name not in shown}
    assert unseen == {f"ray_{PREFIX}tokens_per_second"}  # the rate of the counter says it


def test_alerts_say_what_is_wrong_and_what_to_do() -> None:
    alerts = [rule for rule in rules() if "alert" in rule]
    page = (DEPLOY / "README.md").read_text()
    assert alerts
    for alert in alerts:
        assert alert["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels.run }}" in alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        assert f"`{alert['alert']}`" in page


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    sources = {str(node["uid"]) for node in _sources(board)}
    assert sources == {"${datasource}"}  # chosen when it is imported, not one of whoever made it
    names = {variable["name"] for variable in board["templating"]["list"]}
    assert names == {"datasource", "run", "model"}
    for metric, label in variable_queries():
        assert label in _KNOWN[metric]
    assert len(variable_queries()) == 2


def _sources(node: Any) -> list[dict[str, Any]]:
    if isinstance(node, dict):
        own = [node["datasource"]] if isinstance(node.get("datasource"), dict) else []
        return own + [source for value in node.values() for source in _sources(value)]
    return [source for value in node for source in _sources(value)] if isinstance(node, list) else []


def test_prometheus_finds_rays_on_machines_and_pods_on_kubernetes(tmp_path: Path) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert set(jobs) == {"ray-machines", "ray-kubernetes"}
    kept = {rule["source_labels"][0]: rule["regex"] for rule in jobs["ray-kubernetes"]["relabel_configs"] if "regex" in rule}
    assert kept == {
        "__meta_kubernetes_pod_label_ray_io_is_ray_node": "yes",  # KubeRay's label
        "__meta_kubernetes_pod_container_port_name": "metrics",
    }
    config["scrape_configs"] = [jobs["ray-machines"]]  # Debian's Prometheus is built without Kubernetes
    shutil.copy(DEPLOY / "prometheus" / "rules.yaml", tmp_path)
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    checked = promtool("check", "config", "prometheus.yaml", cwd=tmp_path)
    assert checked.returncode == 0, checked.stderr


def test_alerts_fire_when_they_should_and_at_no_other_time() -> None:
    result = promtool("test", "rules", Path(__file__).with_name("rules.test.yaml"))
    assert result.returncode == 0, result.stdout + result.stderr

"""Every query in deploy/, and what it asks for."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser
import yaml

from tests.deploy.files import DEPLOY

RULES = DEPLOY / "prometheus" / "rules.yaml"
DASHBOARD = DEPLOY / "grafana" / "affectome.json"


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression."""

    name: str
    """Where it stands."""
    expression: str
    """What it says."""

    def __str__(self) -> str:
        return self.name

    def metrics(self) -> set[str]:
        """Names of the metrics it reads."""
        return {str(node.name) for node in self._nodes(promql_parser.VectorSelector)}

    def labels(self) -> dict[str, set[str]]:
        """For each metric it reads, the labels that it wants of it: to choose by, or to keep when it aggregates."""
        wanted: dict[str, set[str]] = {}
        for selector in self._nodes(promql_parser.VectorSelector):
            wanted.setdefault(str(selector.name), set()).update(matcher.name for matcher in selector.matchers.matchers)
        for aggregate in self._nodes(promql_parser.AggregateExpr):
            inner = Query(self.name, aggregate.expr.prettify())
            for metric in inner.metrics():
                wanted.setdefault(metric, set()).update(aggregate.modifier.labels if aggregate.modifier else ())
        return wanted

    def ranges(self) -> Iterator[tuple[str, str]]:
        """Each function that it applies to a range of a metric, with the metric."""
        for call in self._nodes(promql_parser.Call):
            for argument in call.args:
                if isinstance(argument, promql_parser.MatrixSelector):
                    yield str(call.func.name), str(argument.vector_selector.name)

    def _nodes(self, kind: type) -> list[Any]:
        found: list[Any] = []
        promql_parser.walk(promql_parser.parse(self.expression), found.append)
        return [node for node in found if isinstance(node, kind)]


def rules() -> list[dict[str, Any]]:
    """Every rule, recorded or alerting."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Grafana's."""
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def rule_queries() -> list[Query]:
    """What the rules ask."""
    return [Query(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def panel_queries() -> list[Query]:
    """What the dashboard's panels ask."""
    return [
        Query(f"{panel['title']}, {target['refId']}", target["expr"])
        for panel in dashboard()["panels"]
        for target in panel["targets"]
    ]


def variable_queries() -> list[tuple[str, str]]:
    """The metric and the label that each of the dashboard's variables takes its values from."""
    return [
        (metric, label)
        for variable in dashboard()["templating"]["list"]
        for metric, label in re.findall(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", str(variable.get("definition")))
    ]

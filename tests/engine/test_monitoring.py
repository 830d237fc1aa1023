"""What Grafana's dashboard asks for is what a run exports, under the names that persons read."""

import json
import re
from pathlib import Path

import adept_ray
from adept_ray.engine.metrics import SERIES
from adept_ray.search.trials import title_trial

GRAFANA = json.loads((Path(adept_ray.__file__).parent / "engine" / "monitoring" / "grafana.json").read_text())
PREFIX = "ray_"  # put before every application metric


def test_a_title_says_what_is_tried():
    assert title_trial("trial-007", {"k": 1, "base_lr": 3e-4}) == "trial-007 k=1 lr=3e-4"
    assert title_trial("trial-010", {"k": 12, "base_lr": 0.0123}) == "trial-010 k=12 lr=1.2e-2"
    assert title_trial("trial-001", {"k": 2}) == "trial-001 k=2"


def test_every_panel_queries_what_is_exported():
    """The dashboard has unique panels, and no query of it names a series or a tag that no run has."""
    panels = GRAFANA["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 0
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    variables = {each["name"]: each for each in GRAFANA["templating"]["list"]}
    queries += [each["definition"] for each in variables.values() if each["type"] == "query"]
    shown = set()
    for query in queries:
        name, selected = re.search(rf"{PREFIX}(adept_\w+)(?:{{(.*?)}})?", query).groups()
        assert set(re.findall(r"(\w+)=", selected or "")) <= set(SERIES[name][1])
        shown.add(name)
    assert shown == set(SERIES)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(GRAFANA)))
    assert used - {"__all"} == set(variables) and {"datasource", "run"} <= set(variables)

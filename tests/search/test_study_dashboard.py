"""Optuna's dashboard shows a search's study, as a page says."""

import json
import re
from pathlib import Path
from wsgiref.util import setup_testing_defaults

import optuna
from optuna_dashboard import wsgi

from adept_ray.search.study import open_study

PAGE = Path(__file__).resolve().parents[2] / "docs" / "searching.md"


def test_the_dashboard_shows_the_study_that_the_page_names(tmp_path, monkeypatch):
    """Given the place that ``--study`` takes it lists the study, and its trial with what that reached."""
    monkeypatch.chdir(tmp_path)
    (place,) = re.findall(r"^optuna-dashboard (\S+)$", PAGE.read_text(), re.MULTILINE)
    assert f"`--study {place}`" in PAGE.read_text()
    study = optuna.create_study(storage=open_study(place), study_name="adept_ray x", direction="maximize")
    study.add_trial(optuna.trial.create_trial(value=1.5))
    app = wsgi(optuna.storages.RDBStorage(place))

    def ask(path):
        asked = {"PATH_INFO": path}
        setup_testing_defaults(asked)
        return json.loads(b"".join(app(asked, lambda *_: None)))

    (shown,) = ask("/api/studies")["study_summaries"]
    assert shown["study_name"] == "adept_ray x"
    (trial,) = ask(f"/api/studies/{shown['study_id']}")["trials"]
    assert trial["values"] == [1.5]

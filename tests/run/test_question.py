"""What a search asks: how large k may be, what a trial may take, and which searches share trials."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from common import tiny_model

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import SearchSpace
from adept_ray.config.specs import SearchRun
from adept_ray.data.corpora import CorpusFiles
from adept_ray.data.loading import Backbone
from adept_ray.engine.nodes import Disk
from adept_ray.run import disk_needs
from adept_ray.run.disk_needs import plan_disk_needs
from adept_ray.run.flags import parse_flags
from adept_ray.run.question import limit_k, name_question, pose_question, rerun_command
from adept_ray.run.sources import Sources
from adept_ray.search.edges import DepthLimit

SOURCES = Sources(Backbone("", ""), tiny_model().config, CorpusFiles(Path(), "", "", ""), None)


def space(**parameters):
    """A search space of k and further parameters."""
    return SearchSpace(parameters={"k": {"int": [1, 3]}, **parameters})


def test_a_question_holds_what_every_trial_shares():
    """Sizes of the run, a deepest training for the plan of memory, and how many layers must be in order."""
    run = SearchRun(tokens_per_trial=999, reports=5)
    question = pose_question(run, space(), SOURCES)
    assert (question.base.tokens, question.base.reports) == (999, 5)
    assert (question.deepest.k, question.deepest.tokens, question.k_max) == (3, 999, 3)
    assert question.limit == DepthLimit(4, 4)
    assert question.space.first[0] == {"k": 3}  # the paper's k = 4 is outside; the nearest goes first


def test_what_a_schedule_can_not_do_is_refused_before_anything_is_measured():
    """Every trial has the schedule; where no branch can be read, nothing is asked."""
    assert pose_question(SearchRun(schedule="wsd"), space(), SOURCES).deepest.schedule == "wsd"
    with pytest.raises(UserError, match="--reports 9 by --schedule wsd"):
        pose_question(SearchRun(schedule="wsd", reports=9), space(), SOURCES)


def test_a_trial_may_take_what_the_space_has():
    """Whatever form the range has; nothing of a parameter that isn't searched."""
    placed = {"placement": {"choice": ["guided", "receptive"]}, "granularity": {"fixed": "block"}}
    question = pose_question(SearchRun(), space(**placed), SOURCES)
    assert question.may_take("placement", "receptive") and question.may_take("granularity", "block")
    assert not question.may_take("placement", "uniform")
    assert not question.may_take("sign", "protect")


def test_a_budget_ends_the_range_of_k_and_says_so():
    """A k that costs more isn't tried; the limit is that of the budget, and the command names twice that."""
    lines = []
    question = pose_question(SearchRun(max_new_params="40%"), space(), SOURCES, lines.append)
    (line,) = lines
    most = question.space.parameters["k"].values[1]
    assert most < 3 and f"no k above {most} is tried" in line and line.startswith("--max-new-params 40%: at")
    assert (question.limit.layers, question.limit.most) == (4, most)
    assert "--max-new-params 80%" in question.limit.richer_command
    assert question.deepest.k == most


def test_a_question_that_the_backbone_cannot_answer_is_refused():
    """A k above its layers."""
    with pytest.raises(UserError, match="k is 9"):
        pose_question(SearchRun(), SearchSpace(parameters={"k": {"int": [1, 9]}}), SOURCES)


def test_a_budget_that_ends_k_comes_with_the_command_of_twice_that():
    """Which is the same search but for that flag; without a budget the backbone alone ends k."""
    asked = SearchRun(backbone="smollm2-135m", max_new_params="7.5%", trials=9, range=("k=1:3",))
    sources = SimpleNamespace(layers=30)
    found = limit_k(asked, sources, 2)
    assert (found.layers, found.most, found.budget) == (30, 2, "--max-new-params 7.5%")
    script, *flags = shlex.split(found.richer_command)[1:]
    assert script == "scripts/tune_k.py"
    again = parse_flags(SearchRun, "", flags)
    assert (again.max_new_params, again.trials, again.range) == ("15%", 9, ())
    assert limit_k(SearchRun(), sources, 30) == DepthLimit(30, 30)


@pytest.mark.parametrize(
    ("study", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("postgresql+psycopg://me:se/c:r?e@secret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("mysql://:secret@host/db?charset=utf8", "mysql://:***@host/db?charset=utf8"),
        ("mysql://host/db?passwd=secret&user=me", "mysql://host/db?passwd=***&user=me"),
        ("postgresql:/me:secret@host/db", "postgresql:/me:***@host/db"),
        *((same, same) for same in ("postgresql://me@host:5432/db", "sqlite:////a/b:c@d.db", "a/b@c.log")),
    ],
)
def test_a_password_is_in_no_command(study, shown):
    """The rest of the study stays as it was given, whatever form it has."""
    command = rerun_command(SearchRun(study=study, pareto=True))
    assert f"--study {shlex.quote(shown)}" in command and "secret" not in command


def test_searches_of_the_same_question_share_a_study():
    """How many trials, on how many workers and under which name doesn't matter; what is measured does."""
    prepared = SimpleNamespace(fingerprints={"backbone": "0123"})

    def name(settings=None, **changes):
        return name_question(SearchRun(**(settings or {})), space(**changes), prepared)

    same = [{"trials": 30}, {"workers": 2, "micro_batch": 1}, {"name": "x"}, {"max_hours": 1.0}]
    assert {name(), *map(name, same)} == {name()}
    others = [{"seq_len": 64}, {"probe": "raced"}, {"precision": "bfloat16"}, {"pareto": True}]
    others += [{"min_gain_per_layer": 0.5}, {"score": "bpb"}, {"domain_tasks": ["medqa"]}]
    others += [{"schedule": "wsd"}, {"schedule": "wsd", "reports": 2}]
    assert name({"reports": 2}) == name()
    assert len({name(), name(warmup={"fixed": 0.2}), *map(name, others)}) == 2 + len(others)


@pytest.mark.parametrize(
    ("settings", "at_once"),
    [
        ({"concurrent": "auto"}, 2),
        ({"concurrent": 4}, None),
        ({"concurrent": "auto", "storage": "s3://b"}, None),
    ],
)
def test_trials_at_once_are_as_many_as_storage_holds(monkeypatch, settings, at_once):
    """Two checkpoints a trial beside what is kept; a number that was given and a bucket set no bound."""
    monkeypatch.setattr(disk_needs, "find_local_folder", lambda place: None if "://" in place else place)
    run = SearchRun(**settings)
    question = pose_question(run, space(), SOURCES)
    needs = plan_disk_needs(run, SOURCES, question.space)
    free = needs.kept + needs.model + 5 * needs.checkpoint
    monkeypatch.setattr(disk_needs, "measure_disk", lambda path: Disk(path, 1, free))
    assert question.describe_load(run, SOURCES).at_once == at_once

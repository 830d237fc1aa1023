"""Choosing k, proposing trials and stopping them, without a cluster: what Ray and Optuna are told."""

import functools
import itertools
import math
import pickle
import sys
import tempfile
import traceback
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import optuna
import pytest
import sqlalchemy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.storages._rdb import models
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.utils import flatten_dict

from adept_ray.config.errors import UserError
from adept_ray.config.search_space import Range, SearchSpace
from adept_ray.config.specs import ScoreWeights, SearchRun, TrainingSpec
from adept_ray.data import loading
from adept_ray.data.loading import Backbone
from adept_ray.engine.job import DeferredWork, is_out_of_memory
from adept_ray.method import memory_plan
from adept_ray.method.fit import PLAIN, Fit
from adept_ray.method.importance import LayerImportance
from adept_ray.method.memory_plan import MemoryPlan
from adept_ray.search import study
from adept_ray.search import tune as search
from adept_ray.search import verdicts as judging
from adept_ray.search.ranges import check_space, limit_depths, override_ranges, parse_amount, put_paper_first
from adept_ray.search.restoring import (
    drop_broken_files,
    is_restorable,
    keep_files,
    mend_files,
    mend_generator,
)
from adept_ray.search.setup import SearchSetup
from adept_ray.search.study import (
    STARTUP_TRIALS,
    BegunTrial,
    Proposals,
    Sampler,
    SearchClock,
    make_distribution,
    open_study,
    propose_setting,
    rank_hyperparameters,
)
from adept_ray.search.trials import Trial, describe_trial, resolve_training
from adept_ray.search.tune import TrialPoster, build_errand
from adept_ray.search.upkeep import delete_checkpoints, forget_trials
from adept_ray.search.verdicts import Verdicts
from adept_ray.training.work import TrainWork

SPACE = {
    "k": Range(int=(0, 6)),
    "base_lr": Range(log=(0.001, 0.01)),
    "warmup": Range(float=(0.0, 0.5)),
    "normalization": Range(choice=("rank", "none")),
    "clip": Range(fixed=1.0),
}
IMPORTANCE = LayerImportance((0.3, 0.1, 0.2, 0.5, 0.4, 0.6), (0.01,) * 6, 3.0)


def make_setup(**settings):
    """What the trials of a search in this process share."""
    work = TrainWork(Backbone("", ""), TrainingSpec(), (), {}, {}, ScoreWeights(), 8, 1, 0)
    space = SearchSpace(parameters=SPACE)
    return SearchSetup(SearchRun(name="x", **settings), space, work, IMPORTANCE, "")


def test_a_trial_keeps_its_activations_where_they_fit_on_its_own_layers(monkeypatch):
    """A gradient passes what lies above the lowest copy, so a copy high up leaves room."""

    def plan(outline, training, layers, seq_len):
        """A layer keeps 10 bytes of a sequence, and 1 where it is computed again."""
        passed = 6 - min(layers)
        return MemoryPlan(0, 0, 0, 0, 0, 0, 0, 10 * passed, passed + 9, 0, 0, 0, 0)

    monkeypatch.setattr(memory_plan, "plan_memory", plan)
    monkeypatch.setattr(loading, "build_outline", lambda backbone: None)
    work = replace(make_setup().work, fit=Fit(recompute=True, compiled=True))
    # Eight sequences a pass, and nine tenths of a memory that can be planned with.
    setup = replace(make_setup(), work=work, memory=8 * 10 * 3 * 10 // 9 + 1)
    fits = [setup.build_work({"k": 1, "layers": [layer]}).fit for layer in (2, 3)]
    assert fits == [work.fit, Fit(compiled=True)]
    asked = make_setup(activation_checkpointing="on").run
    for same in (replace(setup, run=asked), replace(setup, memory=0)):
        assert same.build_work({"k": 1, "layers": [5]}).fit == work.fit

    def fail(*_):
        raise UserError("it can't be read here")

    monkeypatch.setattr(loading, "build_outline", fail)  # as on a machine that doesn't reach it
    assert setup.build_work({"k": 1, "layers": [5]}).fit == work.fit
    planned = replace(setup, work=replace(work, fit=PLAIN))
    assert planned.build_work({"k": 1, "layers": [0]}).fit == PLAIN


# --- the space ------------------------------------------------------------------------------------


def test_k_beyond_the_backbone_is_refused():
    """The message names the k asked for and the number of layers, for ranges, choices and first trials."""
    for k in (Range(int=(1, 7)), Range(choice=(2, 7)), Range(fixed=7)):
        with pytest.raises(UserError, match=r"k is 7: .* layers, 6"):
            check_space(SearchSpace(parameters={"k": k}), 6, TrainingSpec())
    check_space(SearchSpace(parameters={"k": Range(int=(0, 6))}, first=({"k": 6},)), 6, TrainingSpec())
    both = {"k": Range(int=(0, 3)), "placement": Range(choice=("guided", "stratified"))}
    deepest, ranks = check_space(SearchSpace(parameters={"k": Range(int=(0, 3))}), 6, TrainingSpec(offset=1))
    assert (deepest.k, deepest.offset, ranks) == (3, 1, 4)
    assert check_space(SearchSpace(parameters=both), 6, TrainingSpec())[1] == 6


@pytest.mark.parametrize("name", SPACE)
def test_both_ends_of_a_range_are_proposed(name):
    """A range covers its ends and nothing outside; every choice can come up."""
    searched, found = SPACE[name], make_distribution(SPACE[name])
    for value in searched.values:
        assert found._contains(found.to_internal_repr(value))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    values = [study.ask({name: found}).params[name] for _ in range(60)]
    assert all(value in searched for value in values)
    if searched.kind in ("int", "choice", "fixed"):
        assert set(values) == (set(range(7)) if name == "k" else set(searched.values))
    else:
        low, high = searched.values
        middle = math.sqrt(low * high) if searched.kind == "log" else (low + high) / 2
        assert 15 < sum(value < middle for value in values) < 45  # uniform on the scale asked for


CONDITIONAL = {
    "k": Range(int=(1, 3)),
    "placement": Range(choice=("guided", "uniform", "deepest")),
    "offset": Range(int=(1, 4), when={"placement": ("uniform", "deepest")}),
    "replay": Range(float=(0.1, 0.5), when={"offset": (2, 3)}),
}


@pytest.mark.parametrize("name", ["k", "placement", "offset", "replay"])
def test_parameters_with_a_condition_are_proposed_where_it_holds(name):
    """Nowhere else, and what hangs on an absent one is absent, too; a range means the same either way."""
    space, algorithm = SearchSpace(parameters=CONDITIONAL), proposals(parameters=CONDITIONAL)
    settings = [algorithm.suggest(f"t{number}") for number in range(40)]
    assert {len(setting) for setting in settings} == {2, 3, 4}
    for setting in settings:
        assert list(setting) == space.list_active(setting)
        assert ("offset" in setting) == (setting["placement"] != "guided")
        assert ("replay" in setting) == (setting.get("offset") in (2, 3))
    assert all(setting[name] in CONDITIONAL[name] for setting in settings if name in setting)


def test_the_deepest_training_of_a_space_takes_conditions_into_account():
    """An offset that only deepest copies have takes no layer from those that are placed evenly."""
    ranges = {
        "k": Range(int=(1, 5)),
        "placement": Range(choice=("uniform", "deepest")),
        "offset": Range(int=(0, 1), when={"placement": "uniform"}),
    }
    with pytest.raises(UserError, match="placement uniform of 5 copies with offset 1"):
        check_space(SearchSpace(parameters=ranges), 6, TrainingSpec())
    ranges["offset"] = Range(int=(0, 1), when={"placement": "deepest"})
    assert check_space(SearchSpace(parameters=ranges), 6, TrainingSpec())[0].k == 5


def test_no_depth_beyond_the_budget_is_searched():
    """Whichever layers are copied it has to be enough; a space without any depth left is refused."""
    sizes = [100, 300, 200]
    whole = SearchSpace(parameters={"k": Range(int=(1, 3))}, first=({"k": 3}, {"k": 1}))
    cut, most = limit_depths(whole, sizes, 550, "--flag")
    assert (cut.parameters["k"].values, most) == ((1, 2), 2) and cut.first == ({"k": 1},)
    assert limit_depths(whole, sizes, 600, "--flag") == (whole, 3)
    some = SearchSpace(parameters={"k": Range(choice=(1, 3))})
    assert limit_depths(some, sizes, 550, "--flag")[0].parameters["k"].values == (1,)
    for k in (Range(int=(2, 3)), Range(choice=(3, 2)), Range(fixed=2)):
        with pytest.raises(UserError, match="--flag: k = 2, the smallest of the search space"):
            limit_depths(SearchSpace(parameters={"k": k}), sizes, 499, "--flag")


def test_a_budget_is_a_share_or_a_number():
    """Of the backbone's parameters, or of whatever size; anything else is refused."""
    texts = {"10%": 20, "0.5%": 1, "15": 15, "2k": 2e3, "15M": 15e6, "1.5B": 1.5e9, "2e7": 2e7}
    assert {text: parse_amount(text, 200) for text in texts} == texts
    for text in ("", "ten", "-5", "0", "0%", "5%%", "1.2.3M", "M"):
        with pytest.raises(UserError, match="give a share such as 10%"):
            parse_amount(text, 200)


def test_the_papers_setting_goes_first():
    """Four layers, guided, every 500 steps, or as near as ranges allow; what the file says of it holds."""
    ranges = {
        "k": Range(int=(1, 3)),
        "recompute_every": Range(choice=(4, 8, 16)),
        "base_lr": Range(log=(1e-4, 1e-2)),
        "placement": Range(choice=("uniform", "guided")),
        "offset": Range(int=(0, 4), when={"placement": "uniform"}),
    }
    paper = {"k": 3, "recompute_every": 16, "base_lr": 0.001, "placement": "guided"}
    mine = {"k": 1, "recompute_every": 4, "base_lr": 0.002, "placement": "guided"}
    ours = {**paper, "base_lr": 0.007}
    assert put_paper_first(SearchSpace(parameters=ranges)).first == (paper,)
    assert put_paper_first(SearchSpace(parameters=ranges, first=(mine,))).first == (paper, mine)
    assert put_paper_first(SearchSpace(parameters=ranges, first=(mine, ours))).first == (ours, mine)
    elsewhere = put_paper_first(SearchSpace(parameters={**ranges, "placement": Range(fixed="uniform")}))
    assert elsewhere.first[0]["placement"] == "uniform" and elsewhere.first[0]["offset"] == 0


def test_ranges_of_the_command_line_hold():
    """They keep a parameter's scale and condition; settings outside them go, mistakes are one sentence."""
    space = SearchSpace(parameters=CONDITIONAL, first=({"k": 1, "placement": "guided"},))
    wider = override_ranges(space, ["k=2:6", "offset=1:8"])
    assert wider.parameters["k"].values == (2, 6) and wider.first == ()
    assert wider.parameters["offset"].values == (1, 8) and wider.parameters["offset"].when
    rates = override_ranges(SearchSpace(parameters=SPACE), ["base_lr=1e-05:0.1"]).parameters["base_lr"]
    assert (rates.kind, rates.values) == ("log", (1e-5, 0.1))
    for text, words in {
        "k": "give NAME=LOW:HIGH",
        "kk=1:2": "no such parameter",
        "k=1:x": "whole numbers",
        "k=5:2": "empty",
        "replay=0.1:2": "less than 1",
    }.items():
        with pytest.raises(UserError, match=f"--range {text}.*{words}"):
            override_ranges(space, [text])


# --- proposals ------------------------------------------------------------------------------------


def proposals(seed=0, first=(), parameters=SPACE, **options):
    """What a search proposes with, in this process's memory unless a `storage` is among the `options`."""
    return Proposals(
        space=functools.partial(propose_setting, SearchSpace(parameters=parameters)),
        points_to_evaluate=[dict(setting) for setting in first],
        **{"sampler": Sampler(seed), "metric": "score", "mode": "max", **options},
    )


def score(setting, number):
    """What a trial with that setting reports; every third is stopped early."""
    return {"score": setting["k"] - 100 * setting["base_lr"], "report": 1, "complete": number % 3 != 2}


def run(algorithm, numbers):
    """Propose trials one after the other, each scored by its settings."""
    settings = []
    for number in numbers:
        name = f"t{number}"
        settings.append(algorithm.suggest(name))
        result = score(settings[-1], number)
        algorithm.on_trial_result(name, result)
        algorithm.on_trial_complete(name, result)
    return settings


def test_searches_that_share_a_study_propose_otherwise():
    """Begun together with one seed they would do all twice; each on its own proposes the same again."""
    ones = [run(proposals(sampler=Sampler(0, owner=owner)), range(6)) for owner in ("a", "b", "a")]
    assert ones[0] == ones[2] != ones[1]


def test_same_seed_same_proposals():
    """The seed decides what is proposed, beyond the random start too; another seed proposes otherwise."""
    assert run(proposals(), range(8)) == run(proposals(), range(8))
    assert run(proposals(1), range(8)) != run(proposals(), range(8))


def test_first_settings_come_first():
    """The settings of the file are tried before the sampler's own, as they are written."""
    first = [{"k": k, "base_lr": 0.002, "warmup": 0.0, "normalization": "none", "clip": 1.0} for k in (6, 0)]
    assert run(proposals(first=first), range(3))[:2] == first


def test_a_restored_search_goes_on_with_the_same_proposals(tmp_path):
    """Saved half-way and restored into a new process's object, it proposes what it would have proposed."""
    straight = run(proposals(), range(8))
    half = proposals()
    assert run(half, range(4)) == straight[:4]
    half.save(str(tmp_path / "state"))
    restored = proposals(seed=5)
    restored.restore(str(tmp_path / "state"))
    assert run(restored, range(4, 8)) == straight[4:]


def test_optuna_hears_how_each_trial_ended():
    """A complete trial has its score, a stopped one is pruned with the value it reached, an error fails."""
    algorithm = proposals()
    reports = {
        "whole": ([1.0, 2.0], True, False),
        "stopped": ([3.0], False, False),
        "broken": ([4.0], False, True),
        "silent": ([], False, True),
    }
    for name, (scores, complete, error) in reports.items():
        algorithm.suggest(name)
        results = [{"score": s, "report": i + 1, "complete": False} for i, s in enumerate(scores)]
        for result in results:
            algorithm.on_trial_result(name, result)
        last = {**results[-1], "complete": complete} if results else None
        algorithm.on_trial_complete(name, None if error else last, error)
    told = [(t.state, t.value) for t in algorithm._ot_study.get_trials()]
    assert told[:2] == [(TrialState.COMPLETE, 2.0), (TrialState.PRUNED, 3.0)]
    assert [state for state, _ in told[2:]] == [TrialState.FAIL, TrialState.FAIL]


@pytest.fixture(params=["journal", "sqlite", "postgres"])
def kept(request, tmp_path):
    """Gives the place of a study that isn't there yet, of a kind of storage, by a name."""
    if request.param == "postgres":
        database = request.getfixturevalue("postgres")
        return lambda name: database(f"{request.function.__name__[:40]}_{name}")
    form = {"journal": "{}/{}.log", "sqlite": "sqlite:///{}/{}.db"}[request.param]
    return lambda name: form.format(tmp_path, name)


def test_a_study_anywhere_proposes_the_same(kept):
    """In a database, in a file or in memory: where trials are kept is no part of the search."""
    alone = run(proposals(storage=open_study("")), range(8))
    assert run(proposals(storage=open_study(kept("study"))), range(8)) == alone == run(proposals(), range(8))


def test_what_cannot_be_opened_is_no_study(tmp_path):
    """The sentence names it and the forms that are known."""
    for place in (
        "nosuch://host/db",
        f"{tmp_path}/no/such/folder/study.log",
        "sqlite:////no/such/folder/a.db",
    ):
        with pytest.raises(UserError, match=f"--study {place} can't be opened .*: give sqlite:///FILE"):
            open_study(place)


def test_a_driver_or_server_that_is_missing_is_named(monkeypatch, tmp_path):
    """Which package to install, and what the driver says of the server, each in one sentence."""
    with pytest.raises(UserError) as refused:
        open_study(f"postgresql://me@/study?host={tmp_path}/nobody")
    assert f"--study postgresql://me@/study?host={tmp_path}/nobody can't be opened (connection" in str(
        refused.value
    )
    assert "sqlalche.me" not in str(refused.value) and "\n" not in str(refused.value)
    for module, package in {"psycopg": "'psycopg[binary]'", "pg8000": "pg8000"}.items():
        monkeypatch.setitem(sys.modules, module, None)  # as if it weren't installed
        with pytest.raises(UserError) as refused:
            open_study(f"postgresql+{module}://me@host/study")
        assert str(refused.value) == (
            f"--study postgresql+{module}://me@host/study needs the database's driver, {module}: "
            f"pip install {package}"
        )


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nosuch://me:secret@host/db", "--study nosuch://me:***@host/db can't be opened (Can't load"),
        ("postgresql://me:secret@/db?host=/nobody", "--study postgresql://me:***@/db?host=/nobody can't be"),
        ("postgresql://me:se@cret@host/db", "can't be opened (an @ in a password is written %40)"),
        ("postgresql://me:secret@host:secret@host/db", "can't be opened (an @ in a password"),
        ("postgresql:/me:secret@host/db", "--study postgresql:/me:***@host/db can't be opened ("),
        ("postgresql+pg8000://me:secret@host/db", "--study postgresql+pg8000://me:***@host/db needs"),
    ],
)
def test_a_password_is_in_no_message(monkeypatch, place, words):
    """Whatever is wrong with the study, and whatever its driver says."""
    monkeypatch.setitem(sys.modules, "pg8000", None)
    with pytest.raises(UserError) as refused:
        open_study(place)
    assert words in str(refused.value)
    assert "secret" not in str(refused.value) and "cret@" not in str(refused.value)


def test_searches_that_begin_at_the_same_time_make_the_tables_once(postgres):
    """One that finds none, and is overtaken by another one before it has made them, takes those."""
    place = postgres("begun_twice")
    engine = sqlalchemy.create_engine(place)
    waiting = sqlalchemy.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
    with ThreadPoolExecutor() as pool:
        with engine.connect() as other:
            models.BaseModel.metadata.create_all(other)
            mine = pool.submit(open_study, place)
            with engine.connect() as watcher:
                while not watcher.scalar(waiting) and not mine.done():
                    watcher.rollback()
            other.commit()
        assert run(proposals(storage=mine.result()), range(2)) == run(proposals(), range(2))
    engine.dispose()


def test_searches_that_share_a_study_learn_from_each_other(kept):
    """The second one models the scores of the first one's trials from its beginning."""
    place = kept("study")
    one = proposals(owner="one", storage=open_study(place))
    run(one, range(STARTUP_TRIALS + 2))
    other = proposals(owner="other", storage=open_study(place))
    alone = proposals(owner="other").suggest("t0")
    assert other.suggest("t0") != alone
    owners = [trial.user_attrs["search"] for trial in other._ot_study.get_trials()]
    assert owners == ["one"] * (STARTUP_TRIALS + 2) + ["other"]


def test_a_study_that_knows_more_than_tune_is_taken_back(tmp_path, kept):
    """After a kill it goes on as if lost proposals had not been made; those asked for first aren't lost."""
    first = [
        {"k": k, "base_lr": 0.002, "warmup": 0.0, "normalization": "none", "clip": 1.0} for k in (6, 0, 3)
    ]
    straight = run(proposals(first=first), range(8))
    for saved in (1, 5):
        place = kept(f"saved_{saved}")
        lost = proposals(first=first, owner="me", storage=open_study(place))
        assert run(lost, range(saved)) == straight[:saved]
        lost.save(str(tmp_path / "state"))
        assert lost.suggest("begun and lost") == straight[saved]
        goes_on = proposals(owner="me", storage=open_study(place))
        goes_on.restore(str(tmp_path / "state"))
        assert run(goes_on, range(saved, 8)) == straight[saved:]


def test_what_ended_without_tune_hearing_is_run_again_once(tmp_path):
    """A trial that the study knows the end of and Tune not even the beginning goes before those that wait."""
    first = [
        {"k": k, "base_lr": 0.002, "warmup": 0.0, "normalization": "none", "clip": 1.0} for k in (6, 0, 3)
    ]
    lost = proposals(first=first, owner="me", storage=open_study(f"{tmp_path}/study.log"))
    straight = run(lost, range(1))
    lost.save(str(tmp_path / "state"))
    assert run(lost, [1]) == [first[1]]
    lost.suggest("begun and lost")
    for _ in range(2):  # resumed twice: nothing is repeated twice
        goes_on = proposals(owner="me", storage=open_study(f"{tmp_path}/study.log"))
        goes_on.restore(str(tmp_path / "state"))
        straight += run(goes_on, [len(straight)])
        goes_on.save(str(tmp_path / "state"))
    assert straight == first


def test_what_was_proposed_and_ended_without_tune_hearing_is_run_again_once(tmp_path):
    """With the same settings, before others are proposed; a later resume knows of it."""
    place, begun = f"{tmp_path}/study.log", STARTUP_TRIALS + 1
    lost = proposals(owner="me", storage=open_study(place))
    run(lost, range(begun))
    lost.save(str(tmp_path / "state"))
    unheard, later = run(lost, [begun]), []
    for _ in range(2):
        goes_on = proposals(owner="me", storage=open_study(place))
        goes_on.restore(str(tmp_path / "state"))
        later += run(goes_on, [begun + len(later)])
        goes_on.save(str(tmp_path / "state"))
    assert later[:1] == unheard != later[1:]


def moments(folder, trials, **options):
    """A search's life, saved whenever a trial has begun or ended: settings, and what Tune knows by then."""
    algorithm, settings, known = proposals(**options), [], {}
    lives = [(algorithm.save(str(folder / "0")), {})]
    for number in range(trials):
        name = f"t{number}"
        settings.append(algorithm.suggest(name))
        known[name] = BegunTrial(name, settings[-1], {}, is_over=False)
        algorithm.save(str(folder / str(2 * number + 1)))
        lives.append((None, dict(known)))
        result = score(settings[-1], number)
        algorithm.on_trial_result(name, result)
        algorithm.on_trial_complete(name, result)
        known[name] = BegunTrial(name, settings[-1], result, is_over=True)
        algorithm.save(str(folder / str(2 * number + 2)))
        lives.append((None, dict(known)))
    return settings, [known for _, known in lives]


def finish(algorithm, known, trials):
    """Let a restored search go on to so many trials; returns the settings of all of them."""
    settings = [trial.setting for trial in known.values()]
    for trial in known.values():
        if not trial.is_over:  # Tune runs it again
            result = score(trial.setting, int(trial.id[1:]))
            algorithm.on_trial_result(trial.id, result)
            algorithm.on_trial_complete(trial.id, result)
    for number in range(len(known), trials):
        settings += run(algorithm, [number])
    return settings


@pytest.mark.parametrize("queued", [0, 3])
def test_files_of_different_moments_are_brought_to_agree(tmp_path, monkeypatch, queued):
    """Tune copies each of its files by itself: whichever is older, the search goes on as if never killed.

    Four of six trials are drawn or asked for, the others proposed by what is known.
    """
    first = [
        {"k": k, "base_lr": 0.002, "warmup": 0.0, "normalization": "none", "clip": 1.0} for k in (6, 0, 3)
    ]
    straight, known = moments(tmp_path, 6, first=first[:queued])
    for state, records in itertools.product(range(len(known)), repeat=2):
        heard = state // 2  # trials whose end the state knows: where Tune has lost those, they run again
        if len(known[records]) < heard:
            continue
        monkeypatch.setattr(Proposals, "begun", list(known[records].values()))
        restored = proposals(seed=5)
        restored.restore(str(tmp_path / str(state)))
        assert finish(restored, known[records], 6) == straight, (state, records)
        ended = [trial for trial in restored._ot_study.get_trials() if trial.state != TrialState.FAIL]
        assert len(ended) == 6 and all(trial.state.is_finished() for trial in ended)


def test_what_tune_lost_of_a_trials_end_is_run_again(tmp_path, monkeypatch):
    """With the settings that it had, in the order in which they came."""
    straight, known = moments(tmp_path, 6)
    monkeypatch.setattr(Proposals, "begun", list(known[4].values()))
    restored = proposals(seed=5)
    restored.restore(str(tmp_path / "10"))
    assert finish(restored, known[4], 5) == straight[:5]


@pytest.mark.parametrize("number", [1, 5])
def test_a_trial_that_failed_for_want_of_workers_is_told_again(tmp_path, monkeypatch, number):
    """Its crew died, so it failed and Tune runs it again: what follows is what a quiet search proposes."""
    straight = run(proposals(), range(8))
    cut_off = proposals()
    run(cut_off, range(number))
    cut_off.suggest(f"t{number}")
    cut_off.on_trial_complete(f"t{number}", error=True)
    cut_off.save(str(tmp_path / "state"))
    ends = [number > at for at in range(number + 1)]
    known = [
        BegunTrial(f"t{at}", straight[at], score(straight[at], at) if is_over else {}, is_over)
        for at, is_over in enumerate(ends)
    ]
    monkeypatch.setattr(Proposals, "begun", known)
    restored = proposals(seed=5)
    restored.restore(str(tmp_path / "state"))
    assert finish(restored, {trial.id: trial for trial in known}, 8) == straight


def test_a_search_that_begins_anew_proposes_the_same_beside_what_it_lost(tmp_path):
    """Killed before Tune had any record, it begins from the first trial, in the study that it has left."""
    place, alone = (open_study(f"{tmp_path}/{name}.log") for name in ("study", "alone"))
    lost = proposals(owner="me", storage=place)
    first = lost.suggest("begun and lost")
    again = proposals(owner="me", storage=place)
    again.give_up_lost()
    settings = run(again, range(8))
    assert settings == run(proposals(owner="me", storage=alone), range(8)) and settings[0] == first


def test_nothing_is_proposed_once_there_are_no_workers(monkeypatch):
    """What is proposed before those that were cut off have a score would be proposed without it."""
    algorithm = proposals()
    monkeypatch.setattr(Proposals, "explain_end", staticmethod(lambda: "the workers are gone"))
    assert algorithm.suggest("t0") == Searcher.FINISHED
    monkeypatch.setattr(Proposals, "explain_end", staticmethod(lambda: ""))
    assert run(algorithm, range(8)) == run(proposals(), range(8))


def test_a_study_elsewhere_agrees_with_tunes_records(tmp_path, monkeypatch, kept):
    """A database may know more than both of Tune's files; what it knows the end of isn't told twice."""
    place = kept("study")
    straight, known = moments(tmp_path, 6, owner="me", storage=open_study(place))
    monkeypatch.setattr(Proposals, "begun", list(known[6].values()))
    restored = proposals(owner="me", storage=open_study(place))
    restored.restore(str(tmp_path / "2"))
    assert finish(restored, known[6], 6)[:3] == straight[:3]
    states = [trial.state for trial in restored._ot_study.get_trials()]
    assert TrialState.RUNNING not in states
    begun = [trial.params for trial in restored._ot_study.get_trials() if trial.state != TrialState.FAIL]
    assert [begun.count(setting) for setting in straight[:3]] == [1, 1, 1]


def tune_trial(number, status="TERMINATED"):
    """What Tune's record of a trial says."""
    return SimpleNamespace(trial_id=f"id{number}", experiment_tag=f"{number}_k=1", status=status)


def test_a_generator_goes_on_behind_the_trials_on_record(tmp_path):
    """It had counted one that Tune has lost: that isn't counted; what still runs, or runs again, is."""
    limiter = {"max_concurrent": 1, "live_trials": {"id3"}, "num_unfinished_live_trials": 1, "batch": False}
    state = {"counter": 3, "total_samples": 3, "finished": True, "name:ConcurrencyLimiter": limiter}
    (tmp_path / "search_gen_state-2020-01-01_00-00-00.json").write_bytes(
        pickle.dumps({**state, "counter": 9})
    )
    (tmp_path / "search_gen_state-2020-01-01_00-00-01.json").write_bytes(pickle.dumps(state))
    begun = [tune_trial(1), tune_trial(2, "RUNNING"), tune_trial(3, "ERROR")]
    mend_generator(str(tmp_path), begun, trials=4, crews=2)
    mended = pickle.loads(max(tmp_path.iterdir()).read_bytes())
    assert mended.pop("name:ConcurrencyLimiter") == {
        "max_concurrent": 2,
        "live_trials": {"id2", "id3"},
        "num_unfinished_live_trials": 2,
        "batch": False,
    }
    assert mended == {"counter": 3, "total_samples": 4, "finished": False}


def test_files_that_were_cut_short_are_passed_over(tmp_path):
    """Those of an earlier command take their places; a search whose only files were cut can't be restored."""
    whole = {
        "tuner.pkl": pickle.dumps({"a": 1}),
        "experiment_state-1.json": b'{"trial_data": []}',
        "search_gen_state-1.json": pickle.dumps({"counter": 1}),
        "searcher-state-1.pkl": pickle.dumps(list(range(1000))),
    }
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
        (tmp_path / name.replace("1", "2")).write_bytes(content)
    assert drop_broken_files(str(tmp_path)) == [] and is_restorable(str(tmp_path))
    for name, content in whole.items():
        (tmp_path / name.replace("1", "2")).write_bytes(content[: len(content) // 2])
    cut = sorted(name.replace("1", "2") for name in whole)
    assert sorted(drop_broken_files(str(tmp_path))) == cut
    assert not is_restorable(str(tmp_path)) and not is_restorable(
        str(tmp_path / "of no search")
    )  # no settings
    (tmp_path / "tuner.pkl").write_bytes(whole["tuner.pkl"])
    assert is_restorable(str(tmp_path)) and drop_broken_files(str(tmp_path)) == []


@pytest.fixture
def saved(tmp_path):
    """What Tune saved on this machine, a copy of it that was kept, and what reached the search's folder."""
    content = {
        "experiment_state-2.json": b'{"trial_data": ["t1", "t2"]}',
        "search_gen_state-2.json": pickle.dumps({"counter": 2}),
        "searcher-state-2.pkl": pickle.dumps(list(range(1000))),
    }
    here, experiment = tmp_path / "staging", tmp_path / "search"
    here.mkdir()
    experiment.mkdir()
    (experiment / "tuner.pkl").write_bytes(pickle.dumps({"a": 1}))
    for name, each in content.items():
        (here / name).write_bytes(each)
        (here / name.replace("2", "1")).write_bytes(b"of an earlier command")
    keep_files(here, str(experiment))
    for name, each in content.items():
        (experiment / name).write_bytes(each)
    return experiment, {file.name: file.read_bytes() for file in experiment.iterdir()}


def test_a_file_of_tunes_that_was_cut_short_comes_back(saved):
    """Whichever it is, cut anywhere or missing, though the command has one of each kind."""
    experiment, whole = saved
    for name, content in whole.items():
        for left in (None, b"", content[:1], content[:-1]):
            (experiment / name).unlink() if left is None else (experiment / name).write_bytes(left)
            assert mend_files(str(experiment)) == ([] if left is None else [name])
            assert {file.name: file.read_bytes() for file in experiment.iterdir()} == whole
    for name in whole:
        (experiment / name).write_bytes(b"{")
    assert sorted(mend_files(str(experiment))) == sorted(whole) and is_restorable(str(experiment))


def test_the_copy_is_kept_before_tune_writes_its_own(saved, tmp_path, monkeypatch):
    """When its callbacks are asked for their state; before there is a trial there is nothing to keep."""
    monkeypatch.setattr(TrialPoster, "experiment", str(tmp_path / "other"))
    poster = TrialPoster("run", lambda *_: None)
    assert poster.get_state() is None and not (tmp_path / "other-kept.pkl").exists()
    storage = SimpleNamespace(experiment_driver_staging_path=str(tmp_path / "staging"))
    poster.on_step_begin(1, [SimpleNamespace(storage=storage)])
    (tmp_path / "other").mkdir()
    assert poster.get_state() is None and (tmp_path / "other-kept.pkl").exists()


def test_trained_trials_are_never_forgotten(tmp_path):
    """Without records of them the search is refused, and they stay; a search that had none yet begins."""
    setup = SimpleNamespace(storage=str(tmp_path), experiment=str(tmp_path / "search"))
    assert search.recover_trials(setup, print) == []
    trained = tmp_path / "trials" / "trial-001" / "model.safetensors"
    trained.parent.mkdir(parents=True)
    trained.write_bytes(b"weights")
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "experiment_state-1.json").write_bytes(b"{")
    with pytest.raises(UserError, match=r"no whole records of the search.*under another --name$"):
        search.recover_trials(setup, lambda text: None)
    assert trained.exists()


BOTH_SIDES = {"metric": ["general_delta", "domain_delta"], "mode": ["max", "max"]}
OWN = {
    "one": [{"k": 1, "placement": "guided"}, {"k": 2, "placement": "uniform", "offset": 2, "replay": 0.3}],
    "other": [{"k": 3, "placement": "deepest", "offset": 1}, {"k": 3, "placement": "guided"}],
}


@pytest.mark.parametrize("objectives", [{}, BOTH_SIDES], ids=["score", "pareto"])
def test_each_search_begins_with_its_own_first_settings(objectives, kept, tmp_path):
    """In its order, whoever asks in between, and once: also where one is killed and goes on."""
    place = kept("pareto" if objectives else "score")

    def begins(owner):
        options = {
            "owner": owner,
            "storage": open_study(place),
            "sampler": Sampler(0, owner=owner),
            **objectives,
        }
        return proposals(first=OWN.get(owner, ()), parameters=CONDITIONAL, **options)

    one, other, third = begins("one"), begins("other"), begins("third")
    third.suggest("t0")
    assert other.suggest("t0") == OWN["other"][0]
    assert one.suggest("t0") == OWN["one"][0]
    one.save(str(tmp_path / "state"))
    assert one.suggest("begun and lost") == OWN["one"][1]
    one = begins("one")
    one.restore(str(tmp_path / "state"))
    third.suggest("t1")
    assert one.suggest("t1") == OWN["one"][1]
    assert other.suggest("t1") == OWN["other"][1]
    one.suggest("t2")
    other.suggest("t2")
    trials = [trial for trial in one._ot_study.get_trials() if trial.state != TrialState.FAIL]
    assert {trial.state for trial in trials} == {TrialState.RUNNING}  # none waits for whoever asks
    for owner, first in {**OWN, "third": []}.items():
        own = [trial for trial in trials if trial.user_attrs["search"] == owner]
        asked = [trial.params for trial in own if "fixed_params" in trial.system_attrs]
        assert asked == [trial.params for trial in own][: len(first)] == first


def test_a_report_that_the_study_has_heard_is_no_error(tmp_path):
    """A trial that ended shortly before a kill runs again for Tune; the study keeps what it knows."""
    algorithm = proposals(storage=open_study(f"{tmp_path}/study.log"))
    algorithm.suggest("t0")
    result = {"score": 1.0, "report": 1, "complete": True}
    algorithm.save(str(tmp_path / "state"))
    algorithm.on_trial_complete("t0", result)
    restored = proposals(storage=open_study(f"{tmp_path}/study.log"))
    restored.restore(str(tmp_path / "state"))
    restored.on_trial_result("t0", {**result, "score": 2.0})
    restored.on_trial_complete("t0", {**result, "score": 2.0})
    assert [(t.state, t.value) for t in restored._ot_study.get_trials()] == [(TrialState.COMPLETE, 1.0)]


def test_the_first_trials_are_drawn_whatever_the_scores():
    """TPE models the score from the fifth trial on, and not before."""
    settings = {}
    for sign in (1, -1):
        algorithm, settings[sign] = proposals(), []
        for number in range(STARTUP_TRIALS + 4):
            setting = algorithm.suggest(f"t{number}")
            settings[sign].append(setting)
            result = {"score": sign * setting["base_lr"], "report": 1, "complete": True}
            algorithm.on_trial_complete(f"t{number}", result)
    assert settings[1][:STARTUP_TRIALS] == settings[-1][:STARTUP_TRIALS]
    assert settings[1][STARTUP_TRIALS:] != settings[-1][STARTUP_TRIALS:]


def test_trials_side_by_side_are_no_more_random_than_one_by_one():
    """However many run at once, so many begin at random; the next ones depend on what scores are known."""
    settings = {}
    for seed_of_scores in (0, 1):
        algorithm = proposals()
        settings[seed_of_scores] = [algorithm.suggest(f"t{number}") for number in range(STARTUP_TRIALS)]
        score = settings[seed_of_scores][0]["k"] * (-1) ** seed_of_scores
        for number in range(2):  # the others still run
            algorithm.on_trial_complete(
                f"t{number}", {"score": score * number, "report": 1, "complete": True}
            )
        settings[seed_of_scores] += [algorithm.suggest(f"later{number}") for number in range(4)]
    assert settings[0][:STARTUP_TRIALS] == settings[1][:STARTUP_TRIALS]
    assert settings[0][STARTUP_TRIALS:] != settings[1][STARTUP_TRIALS:]


def test_trade_offs_are_searched_on_both_sides():
    """Optuna hears both changes of a finished trial; a general gain that isn't paid for is no gain."""
    for retain, general in ((False, 3.0), (True, 0.0)):
        algorithm = proposals(weights=ScoreWeights(retain=retain), **BOTH_SIDES)
        for number in range(STARTUP_TRIALS + 2):
            algorithm.suggest(f"t{number}")
            result = {"general_delta": 3.0, "domain_delta": 5.0, "score": 4.0, "report": 1}
            algorithm.on_trial_result(f"t{number}", result)
            algorithm.on_trial_complete(f"t{number}", {**result, "complete": True})
        assert {tuple(trial.values) for trial in algorithm._ot_study.get_trials()} == {(general, 5.0)}


def test_no_trial_begins_that_would_not_end_in_time(monkeypatch):
    """With the longest so far as the measure; the first one always begins, and without a limit all do."""
    now = [0.0]
    monkeypatch.setattr(study.time, "monotonic", lambda: now[0])
    clock, begun = SearchClock(hours=1.0), []
    for minutes in (20, 5, 10, 10, 10):
        begun.append(clock.try_begin(str(len(begun))))
        now[0] += 60 * minutes * begun[-1]
        clock.end_trial(str(len(begun) - 1))
    assert (
        begun == [True, True, True, True, False] and clock.is_over
    )  # 45 minutes and 20 are more than an hour
    late = SearchClock(hours=1.0)
    now[0] += 7200
    assert [late.try_begin("0"), late.try_begin("1")] == [True, False]
    resumed = SearchClock(hours=1.0, seconds_before=1800)
    resumed.record_length(1500)
    assert resumed.try_begin("0")  # ends after 55 minutes in all
    now[0] += 1500
    resumed.end_trial("0")
    assert not resumed.try_begin("1") and not SearchClock(1.0, 1800, 1900).try_begin("0")
    monkeypatch.setattr(Proposals, "clock", clock)
    assert proposals().suggest("t9") == "FINISHED"
    assert SearchClock().try_begin("0") and not SearchClock().is_over


@pytest.mark.parametrize("pareto", [False, True])
def test_no_k_is_proposed_at_which_memory_ran_out(monkeypatch, pareto):
    """Nor a larger one, not even of the first settings; what was passed over counts as none of the trials."""
    sides = {"metric": ["general_delta", "domain_delta"], "mode": ["max", "max"]} if pareto else {}
    first = [{"k": k, "base_lr": 0.002, "warmup": 0.0, "normalization": "none", "clip": 1.0} for k in (6, 2)]
    algorithm = proposals(first=first, **sides)
    monkeypatch.setattr(Proposals, "find_limit", staticmethod(lambda: 4))
    settings = [algorithm.suggest(f"t{number}") for number in range(12)]
    assert settings[0] == first[1] and {setting["k"] for setting in settings} == {0, 1, 2, 3}
    states = [trial.state for trial in algorithm._ot_study.get_trials()]
    assert states.count(TrialState.RUNNING) == 12 and set(states) == {TrialState.RUNNING, TrialState.FAIL}
    monkeypatch.setattr(Proposals, "find_limit", staticmethod(lambda: 0))
    assert algorithm.suggest("t12")["k"] >= 0  # there is none: it fails without being tried


def test_the_weights_of_a_long_search_stay_few(tmp_path):
    """Of 50 trials those of the best of each k are left, and of one that runs: a folder stays small."""
    trials = []
    for number in range(50):
        folder = tmp_path / f"trial-{number:03d}" / "report-1"
        folder.mkdir(parents=True)
        state = ("finished", "finished", "stopped", "failed")[number % 4]
        trial = Trial(folder.parent.name, k=1 + number % 5, state="running", saved=str(folder))
        trial = replace(trial, score=float(number * 17 % 50), general_delta=0.0, domain_delta=0.0)
        delete_checkpoints([*trials, trial], ScoreWeights(), pareto=False)
        assert folder.exists()
        trials.append(replace(trial, state=state))
        delete_checkpoints(trials, ScoreWeights(), pareto=False)
        best = sorted((trial.score, trial.k, trial.saved) for trial in trials if trial.state == "finished")
        kept = {k: place for _, k, place in best}
        assert {str(path) for path in tmp_path.glob("*/report-1")} == set(kept.values())
    assert len(kept) == 5


def test_what_matters_is_said_of_enough_trials():
    """The parameter that decides has the largest share, the shares are a whole, one trial says nothing."""
    space = SearchSpace(parameters=SPACE)
    trials = []
    for number in range(30):
        setting = {**{name: searched.values[0] for name, searched in SPACE.items()}}
        setting |= {"base_lr": 0.001 + 0.0003 * number}
        k = setting.pop("k") + number * 5 % 7
        score = 1000 * setting["base_lr"]
        trials.append(Trial(f"t{number}", k=k, setting=setting, state="finished", score=score))
    found = rank_hyperparameters(space, trials)
    assert max(found, key=found.get) == "base_lr" and sum(found.values()) == pytest.approx(1)
    assert rank_hyperparameters(space, trials[:3]) == {} != rank_hyperparameters(space, trials[:4])
    assert rank_hyperparameters(space, trials[:1]) == {} and rank_hyperparameters(space, []) == {}
    unfinished = [replace(trial, state="stopped", score=math.nan) for trial in trials]
    assert rank_hyperparameters(space, unfinished) == {}


# --- verdicts and rows ----------------------------------------------------------------------------


@pytest.fixture
def board(monkeypatch):
    """A stand-in for the board of run x: what was posted to it, by method."""
    posted = {"give_verdict": [], "record_row": []}
    methods = {name: lambda *given, name=name: posted[name].append(given) for name in posted}
    for module in (search, judging):
        monkeypatch.setattr(module, "find_board", lambda run: {"x": SimpleNamespace(**methods)}[run])
    return posted


def fake_trial(number, **fields):
    values = {"config": {"k": 2, "base_lr": 0.01}, "last_result": None, "status": "RUNNING"}
    values |= {"trial_id": f"id{number}", "experiment_tag": f"{number}_k=2"}
    return SimpleNamespace(**values | fields)


def new_scheduler(folder, judge_after=1):
    """A scheduler as a search has it, with its memory in `folder`."""
    return Verdicts("x", f"{folder}/verdicts.json", judge_after, ScoreWeights())


def test_no_trial_is_stopped_before_enough_others_came_as_far(board, tmp_path):
    """With judge_after 3 the second and third go on however bad; the fourth is judged."""
    scheduler = new_scheduler(tmp_path, judge_after=3)
    for number, score in enumerate([5.0, 1.0, 2.0, 1.5], 1):
        report_twice(scheduler, number, read(score, 0.0, 0.0))
    assert [stop for _, _, stop in board["give_verdict"][1::2]] == [False, False, False, True]
    assert not any(stop for _, _, stop in board["give_verdict"][::2])


def report_twice(scheduler, number, *readings):
    """Let a trial report the readings one after the other, a single one twice."""
    trial = fake_trial(number)
    scheduler.on_trial_add(None, trial)
    for report, reading in enumerate(readings * (3 - len(readings)), 1):
        scheduler.on_trial_result(None, trial, {**reading, "report": report})


def read(score, *blocks, tokens=100, report=1):
    """A report of so many tokens, whose score its blocks pull apart by so much, as Tune hands it over."""
    pulls = {"general": [0.0] * len(blocks), "domain": list(blocks)}
    values = {"worth": score, "score_se": 99.0, "general_delta": 0.0, "pulls": pulls}
    return flatten_dict({**values, "tokens": tokens, "report": report})


BEST = (10.0, -3.0, 1.0, 2.0)  # a score and its blocks


@pytest.mark.parametrize(
    ("reading", "stopped"),
    [
        (read(9.0, -3.0, 1.0, 2.0), True),  # a little behind, on every block alike
        (read(9.0, 3.0, -1.0, -2.0), False),  # as far behind, by the luck of blocks
        (read(0.0, 3.0, -1.0, -2.0), True),
        (read(9.0, -3.0, 1.0, 2.0, tokens=99), False),
        (read(math.nan, -3.0, 1.0, 2.0), False),
    ],
)
def test_only_what_lies_behind_beyond_chance_is_stopped(board, tmp_path, reading, stopped):
    """Paired by document with the best at as many tokens."""
    scheduler = new_scheduler(tmp_path)
    for number, result in enumerate([read(*BEST), reading], 1):
        report_twice(scheduler, number, result)
    assert [stop for _, _, stop in board["give_verdict"]] == [False, False, False, stopped]


def test_no_single_reading_ends_a_trial(board, tmp_path):
    """Beyond chance behind at one report, whichever, and level with the best at the other: it goes on."""
    scheduler = new_scheduler(tmp_path)
    behind, level = read(9.0, *BEST[1:]), read(*BEST)
    report_twice(scheduler, 1, level)
    report_twice(scheduler, 2, behind, level)
    report_twice(scheduler, 3, level, behind)
    report_twice(scheduler, 4, behind, behind)
    assert [stop for _, _, stop in board["give_verdict"]] == [False] * 7 + [True]


def test_a_restored_scheduler_judges_as_the_lost_one(board, tmp_path):
    """Tune restores a scheduler as it was at the start: scores and verdicts come back from its memory."""
    lost = new_scheduler(tmp_path)
    beginning = pickle.dumps(lost)
    report_twice(lost, 1, read(5.0, 0.0, 0.0))
    report_twice(lost, 2, read(1.0, 0.0, 0.0))
    lost.on_trial_add(None, fake_trial(3))
    lost.on_trial_result(None, fake_trial(3), read(2.0, 0.0, 0.0))
    restored = pickle.loads(beginning)
    for number, score in {2: 9.0, 3: 2.0}.items():  # said before: judged before; and still worse than 5.0
        trial = fake_trial(number, trial_id=f"proposed again {number}")  # by Tune, which had lost it
        restored.on_trial_add(None, trial)
        restored.on_trial_result(None, trial, read(score, 0.0, 0.0, report=2))
    second = [(name, stop) for name, report, stop in board["give_verdict"] if report == 2]
    assert second == [("trial-001", False), *[("trial-002", True)] * 2, ("trial-003", True)]


@pytest.mark.parametrize("lost", [1.0, 9.0])
def test_nothing_is_left_of_a_trial_that_was_lost_in_a_kill(board, tmp_path, lost):
    """Its name may be given to other settings: those find no checkpoint and are judged by what there is."""
    scheduler = new_scheduler(tmp_path)
    beginning = pickle.dumps(scheduler)
    for number, score in enumerate([5.0, lost], 1):
        report_twice(scheduler, number, read(score, 0.0, 0.0))
        (tmp_path / "trials" / f"trial-{number:03d}" / "step-4").mkdir(parents=True)
    forget_trials(str(tmp_path), {"trial-001"})
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["trial-001"]
    restored = pickle.loads(beginning)
    report_twice(restored, 1, read(1.0, 0.0, 0.0))  # as before, whatever is said now
    report_twice(restored, 2, read(4.0, 0.0, 0.0), read(6.0, 0.0, 0.0))  # better than all others in the end
    stops = [(name, stop) for name, _, stop in board["give_verdict"][4:]]
    assert stops == [("trial-001", False)] * 2 + [("trial-002", False)] * 2
    forget_trials(str(tmp_path / "of no search"), set())


def judged(board, scores, reports=3):
    """Run trials of these scores one after the other, each until it is stopped; trial → its verdicts."""
    with tempfile.TemporaryDirectory() as folder:
        scheduler = new_scheduler(folder)
        for number, score in enumerate(scores, 1):
            trial = fake_trial(number)
            scheduler.on_trial_add(None, trial)
            for report in range(1, reports + 1):
                result = read(score, 0.0, 0.0, report=report)
                assert scheduler.on_trial_result(None, trial, result) == Verdicts.CONTINUE
                if board["give_verdict"][-1][2]:
                    break
            scheduler.on_trial_complete(None, trial, result)
    verdicts = {}
    for name, report, stop in board["give_verdict"]:
        verdicts.setdefault(name, []).append((report, stop))
    return verdicts


def test_the_worst_trial_is_told_to_stop(board):
    """Tune is always told to go on; the trial behind the others gets its verdict through the board."""
    verdicts = judged(board, [5.0, 7.0, 8.0, 1.0, 9.0])
    assert verdicts["trial-004"] == [(1, False), (2, True)]
    for name in ("trial-001", "trial-002", "trial-003", "trial-005"):
        assert verdicts[name] == [(1, False), (2, False), (3, False)]


@settings(max_examples=30)  # each writes the scheduler's memory many times
@pytest.mark.filterwarnings("ignore:All-NaN slice")
@given(scores=st.lists(st.integers(-5, 5).map(float) | st.just(math.nan), min_size=1, max_size=8))
def test_every_report_gets_one_verdict_and_the_best_go_on(scores):
    """Workers wait for a verdict on each report: none is missing; a trial that nothing beats goes on."""
    posted = {"give_verdict": []}
    board = SimpleNamespace(give_verdict=lambda *given: posted["give_verdict"].append(given))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judging, "find_board", lambda run: board)
        verdicts = judged(posted, scores)
    for found in verdicts.values():
        assert [report for report, _ in found] == list(range(1, len(found) + 1))
    best = -math.inf
    for score, found in zip(scores, verdicts.values(), strict=True):
        if not score < best:
            assert not any(stop for _, stop in found) and len(found) == 3
            best = max(best, score) if score == score else best


@given(order=st.permutations([1, 1, 2, 2, 3, 3, 4, 4]), fails=st.sampled_from([0, 1, 2, 3, 4]))
def test_trials_at_once_wait_for_nobody(order, fails):
    """In whatever order trials report and end, each report is judged when it comes, by those before it."""
    decided = []
    board = SimpleNamespace(give_verdict=lambda *given: decided.append(given))
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(judging, "find_board", lambda run: board)
        scheduler = new_scheduler(folder, judge_after=2)
        running = {number: fake_trial(number) for number in (1, 2, 3, 4)}
        for one in running.values():
            scheduler.on_trial_add(None, one)
        said = dict.fromkeys(running, 0)
        for number in order:
            if number not in running:
                continue
            said[number] += 1
            result = {"worth": float(number), "score_se": 0.0, "report": said[number]}
            scheduler.on_trial_result(None, running[number], result)
            assert decided[-1][:2] == (f"trial-{number:03d}", said[number])
            if number == fails:
                scheduler.on_trial_error(None, running.pop(number))
            elif said[number] == 2:
                scheduler.on_trial_complete(None, running.pop(number), result)
    assert not any(stop for _, _, stop in decided[:2])  # judge_after: the first two can't have been judged


def test_rows_follow_a_trial_from_start_to_end(board):
    """The board hears a trial's row when it starts, reports and ends; a stopped one isn't called finished."""
    poster = TrialPoster("x", make_setup().describe_trial)
    trial = fake_trial(7)
    poster.on_trial_start(0, [], trial)
    poster.on_trial_result(0, [], trial, {"score": 2.5, "complete": False})
    for complete in (False, True):
        trial.last_result = {"score": 3.5, "complete": complete}
        poster.on_trial_complete(0, [], trial)
    poster.on_trial_error(0, [], trial)
    found = [row for (row,) in board["record_row"]]
    assert [(row["state"], row["score"]) for row in found] == [
        ("running", None), ("running", 2.5), ("stopped", 3.5), ("finished", 3.5), ("failed", 3.5)
    ]  # fmt: skip
    assert {(row["trial"], row["k"], row["layers"], row["base_lr"]) for row in found} == {
        ("trial-007", 2, "1 2", 0.01)
    }


def test_final_states_say_how_trials_ended():
    """Only a trial that reached its last step is finished; one that Tune left running was interrupted."""
    complete, partly = {"complete": True, "score": 1.0, "saved": "c"}, {"complete": False}
    ends = [
        ("TERMINATED", complete),
        ("TERMINATED", partly),
        ("ERROR", partly),
        ("RUNNING", partly),
        ("PENDING", {}),
    ]
    error = RuntimeError("Traceback:\n  some/file.py\nFloatingPointError: the loss is nan at step 2 of 6\n")
    trials = [fake_trial(1, status=s, last_result=m, get_error=lambda: error) for s, m in ends]
    ended = [make_setup().describe_end(trial) for trial in trials]
    assert [trial.state for trial in ended] == ["finished", "stopped", "failed", "interrupted", "interrupted"]
    assert [trial.saved for trial in ended[:2]] == ["c", None]
    assert [trial.error for trial in ended[1:3]] == [
        None,
        "FloatingPointError: the loss is nan at step 2 of 6",
    ]


def test_a_trial_gives_back_its_training():
    """Its settings make the specification it was trained with, at the search's token budget."""
    base = TrainingSpec(tokens=999)
    trial = describe_trial("trial-001", {"k": 2, "base_lr": 0.004}, {"tokens": 500}, "finished", (1, 2))
    assert resolve_training(trial, base) == base.model_copy(update={"k": 2, "base_lr": 0.004})


def test_a_memory_that_is_too_small_is_told_from_other_errors():
    """By what torch really says, on a CPU and on a GPU."""
    for raised, expected in (
        (lambda: torch.empty(10**15), True),
        (lambda: exec("raise torch.OutOfMemoryError('CUDA out of memory')", {"torch": torch}), True),
        (lambda: torch.zeros(2, 3) @ torch.zeros(2, 3), False),
    ):
        with pytest.raises(RuntimeError) as problem:
            raised()
        assert is_out_of_memory("".join(traceback.format_exception(problem.value))) == expected


def test_workers_build_the_work_of_a_setting_as_the_search_does():
    """What they get is bytes, a setting and its price; the layers and rates are those of the setup."""
    setup = make_setup(min_gain_per_layer=1.5)
    errand = build_errand(setup)
    for k in (1, 4):
        built = DeferredWork(errand.setup, {"k": k}).build()
        assert built == setup.build_work({"k": k}) and len(built.layers) == k
    assert errand.price == 1.5 and build_errand(make_setup()).price == 0.0

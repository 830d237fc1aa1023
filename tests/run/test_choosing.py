"""The trial that a search chooses, and the table and curves that are written by the same weights."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from record_parts import SPACE

from adept_ray.config.errors import UserError
from adept_ray.config.specs import ScoreWeights, SearchRun, TrainingSpec
from adept_ray.run.choosing import choose_exported_dial, choose_trial, find_kept_weights, load_trials
from adept_ray.run.question import Question
from adept_ray.run.search_settings import load_space
from adept_ray.search.edges import DepthLimit
from adept_ray.search.rescoring import rescore
from adept_ray.search.trials import Trial, describe_trial, write_trials
from adept_ray.storage.checkpoints import Checkpoint, checkpoint_place, save_checkpoint
from adept_ray.storage.results import Results


def test_what_is_picked_has_its_edges_and_all_trials_have_their_say(tmp_path):
    """Though it is chosen among those alone whose weights were kept."""
    file = tmp_path / "space.yaml"
    file.write_text(SPACE)
    run = SearchRun(search_space=file, pareto=True)
    trials = [
        Trial(
            f"trial-{number}",
            1 + number % 3,
            setting={"base_lr": 0.001 * 2**number},
            state="finished",
            score=float(number),
            score_se=0.1,
            general_delta=float(-number),
            domain_delta=3.0 * number,
            tokens=4096,
            pulls={"general": [0.0, 0.1], "domain": [0.1 * number, 0.0]},
        )
        for number in range(6)
    ]
    kept = [trial if trial.name == "trial-2" else replace(trial, state="given up") for trial in trials]
    base = TrainingSpec()
    question = Question(load_space(run, {}), DepthLimit(6, 6), base, base, 3)
    choice, chosen = choose_trial(run, question, trials, kept)
    assert choice.trial == chosen.name == "trial-2" and choice.k == 3
    assert [edge.parameter for edge in choice.edges] == ["k"]
    assert set(choice.hyperparameters) == {"k", "base_lr"} and len(choice.front) == 6
    assert choose_trial(run, question, trials)[0].trial != "trial-2"


def test_only_trials_whose_weights_are_there_can_be_picked(tmp_path):
    """A finished one without them has no state that counts; of the others the place is named."""
    results = SimpleNamespace(ray=str(tmp_path), place="results/x")
    place = f"{tmp_path}/trials/trial-1"
    states = {"trial-1": "finished", "trial-2": "finished", "trial-3": "stopped"}
    trials = [Trial(name, 1, state=state) for name, state in states.items()]
    with pytest.raises(UserError, match="results/x has no candidates any more"):
        find_kept_weights(trials, results)
    branch = replace(trials[0], saved="/elsewhere/trials/trial-1/512/step-9")  # the results were moved
    save_checkpoint(Checkpoint(9, {}), f"{place}/512")
    save_checkpoint(Checkpoint(4, {}), f"{place}/plateau")
    assert find_kept_weights([branch], results)[0].saved == f"{place}/512/step-9"
    save_checkpoint(Checkpoint(3, {}), place)
    found = {trial.name: (trial.state, trial.saved) for trial in find_kept_weights(trials, results)}
    assert found == {
        "trial-1": ("finished", checkpoint_place(place, 3)),
        "trial-2": ("given up", None),
        "trial-3": ("stopped", None),
    }


def test_other_weights_pick_a_trial_at_the_dial_that_they_like(tmp_path):
    """From what a search wrote and kept, by the same files again: a trial that was better at a lower dial."""
    even = {"general": [0.25] * 4, "domain": [0.25] * 4}
    gains = {
        "gentle": {0.5: (1.0, 3.0), 1.0: (1.0, 6.0)},
        "strong": {0.5: (3.0, 5.0), 1.0: (-12.0, 16.0)},
    }
    trials = []
    for name, by_dial in gains.items():
        turns = [
            {"dial": dial, "gains": {"general": [general / 4] * 4, "domain": [domain / 4] * 4}}
            for dial, (general, domain) in by_dial.items()
        ]
        plain = dict(zip(("plain_general_delta", "plain_domain_delta"), by_dial[1.0], strict=True))
        ends = [{"step": step, "tokens": 64 * step, "score": 0.0, "dial": 1.0, **plain} for step in (4, 8)]
        metrics = {"score": 0.0, "score_se": 0.1, "tokens": 512, "turned": {"turns": turns, "shares": even}}
        metrics |= {"curve": ends}
        trials.append(describe_trial(name, {"k": 2}, metrics, "finished", (2, 4)))
    results = Results(str(tmp_path), "picked")
    results.open(resume=False)
    write_trials(results, rescore(trials, ScoreWeights()), ScoreWeights())
    for trial in trials:
        save_checkpoint(Checkpoint(3, {}), f"{results.ray}/trials/{trial.name}")
    (tmp_path / "space.yaml").write_text(SPACE)
    run, base = SearchRun(search_space=tmp_path / "space.yaml"), TrainingSpec()
    question = Question(load_space(run, {}), DepthLimit(6, 6), base, base, 3)
    found = {}
    for general, dialled in ((0.1, True), (0.8, True), (0.8, False)):
        weights = ScoreWeights(general=general, domain=1 - general)
        again = load_trials(results, weights, dialled)
        space = question.space.model_copy(update={"weights": weights})
        asked = replace(question, space=space)
        choice, chosen = choose_trial(run, asked, again, find_kept_weights(again, results))
        found[general, dialled] = chosen.name, chosen.dial, round(choice.score, 6), chosen.plain_score
        write_trials(results, again, weights)
        end = {name: vars(chosen.curve[-1])[name] for name in ("dial", "score", "plain_score")}
        assert end == {name: pytest.approx(vars(chosen)[name]) for name in end}
        rows = (results.folder / "dials.csv").read_text().splitlines()
        assert rows[3].startswith("strong,0.5,3.0,5.0,") and len(rows) == 5
        assert float(rows[3].rpartition(",")[2]) == pytest.approx(5 - 2 * general)
    assert found[0.1, True] == ("strong", 1.0, 13.2, pytest.approx(13.2))
    assert found[0.8, True] == ("strong", 0.5, 3.4, pytest.approx(-6.4))
    assert found[0.8, False] == ("gentle", 1.0, 2.0, pytest.approx(2.0))


@pytest.mark.parametrize(
    ("asked", "own", "exported"),
    [("auto", 0.6, 0.6), ("auto", None, "off"), ("off", 0.6, "off"), (0.0, 0.6, 0.0)],
)
def test_what_is_picked_is_exported_at_its_dial_or_at_the_one_asked_for(asked, own, exported):
    """A trial of an older search has none; a model without copies can't be turned."""
    assert choose_exported_dial(asked, Trial("trial-001", k=2, dial=own)) == exported
    if not isinstance(asked, str):
        with pytest.raises(UserError, match="--dial 0: trial-001, which is picked, copied no layer"):
            choose_exported_dial(asked, Trial("trial-001", k=0, dial=1.0))


def test_the_curves_are_those_of_the_table(tmp_path):
    """Written with it, so by the same weights: a trial's last reading has the score of its row."""
    deltas = {"general_delta": -1.0, "domain_delta": 4.0}
    ends = {"step": 8, "tokens": 512, "score": 1.5, "loss": 3.0, **deltas}
    pulls = {"general": [0.1, -0.1], "domain": [0.0, 0.0]}
    metrics = {**ends, "score_se": 0.1, "pulls": pulls, "curve": [{**ends, "step": 4, "tokens": 256}, ends]}
    trial = describe_trial("trial-001", {"k": 1}, metrics, "finished", (2,))
    results = Results(str(tmp_path), "picked")
    results.open(resume=False)
    for weights, score in ((ScoreWeights(), 1.5), (ScoreWeights(general=1, domain=0), -1.0)):
        write_trials(results, rescore([trial], weights), weights)
        readings = [json.loads(line) for line in (results.folder / "curves.jsonl").read_text().splitlines()]
        (table,) = json.loads((results.folder / "trials.json").read_text())["trials"]
        assert [(each["tokens"], each["score"]) for each in readings] == [(256, score), (512, score)]
        assert table["score"] == score and readings == [{"trial": "trial-001", **r} for r in table["curve"]]

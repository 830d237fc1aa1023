"""What a run writes down of itself, and its last lines."""

from types import SimpleNamespace

import pytest
import yaml
from record_parts import PREPARED, SOURCES, session_at

from adept_ray.config.errors import InterruptedRun
from adept_ray.config.specs import RunSpec, ScoreWeights, SearchRun, TrainingSpec
from adept_ray.engine.memory import Memory
from adept_ray.run import summary
from adept_ray.run.context import Session
from adept_ray.run.record import has_ended, record_best, record_run
from adept_ray.run.resuming import explain_stops, resume_settings
from adept_ray.run.terminal import Display
from adept_ray.storage.results import Results


@pytest.mark.parametrize(
    ("advised", "head"),
    [(None, "k = 2   layers"), (2, "k = 2   layers"), (0, "advice: k = 0   exported: k = 2   layers")],
)
def test_the_summary_begins_with_the_k_that_is_advised(tmp_path, capsys, monkeypatch, advised, head):
    """Where that isn't the exported one both are named. A model that was turned has a line about its dial."""
    monkeypatch.setattr(summary, "write_pages", lambda _: None)
    side = {"before_bpb": 1.0, "after_bpb": 0.9, "delta": 10.0, "standard_error": 0.1}
    work = SimpleNamespace(training=TrainingSpec(k=2), layers=(1, 3))
    prepared = SimpleNamespace(importance={"layers": []})
    test = {"general": side, "domain": side, "score": 11.7}
    session = Session(RunSpec(), Results(str(tmp_path), "run"), Display())
    summary.show_summary(session, prepared, work, test, "Because.", advised)
    printed = capsys.readouterr().out
    assert printed.startswith(f"\n{head} copied: 1 3\nBecause.\n") and "dial" not in printed
    plain = {"general_delta": 3.4, "domain_delta": 19.4, "score": 11.4}
    for dial, lines in (
        (0.62, ["dial 0.62: score 11.70 ± 0.60 on the test split, as trained 11.40"]),
        (1.0, []),
    ):
        turned = {**test, "dial": dial, "plain": plain, "score_se": 0.6}
        summary.show_summary(session, prepared, work, turned, "Because.", advised)
        assert [line for line in capsys.readouterr().out.splitlines() if "dial" in line] == lines


@pytest.mark.slow  # a process waits to say the last word of a run
def test_what_the_commands_of_a_run_spent_adds_up(tmp_path, monkeypatch):
    """One that was stopped, one that came to the end, one that extended it; and the most memory of all."""
    run, results = SearchRun(name="x", storage=str(tmp_path)), Results(str(tmp_path), "x")
    peaks = iter([3.0, 5.0, 2.0])
    monkeypatch.setattr(Memory, "read_peak", lambda: next(peaks))
    monkeypatch.setattr("sys.argv", ["scripts/tune_k.py", "--trials", "2"])
    record_run(session_at(run, results, 1), SOURCES)
    stopped = session_at(run, results, 20, probe=10, search=5)
    with pytest.raises(InterruptedRun), explain_stops(stopped, "tune-k"):
        raise KeyboardInterrupt
    assert not has_ended(results.read_record())
    monkeypatch.setattr("sys.argv", ["scripts/tune_k.py", "--resume"])
    record_run(session_at(run, results, 1), SOURCES)
    record_run(session_at(run, results, 7, search=4.5, test=1), SOURCES, PREPARED)
    ended = results.read_record()
    assert ended["seconds"] == {"probe": 10, "search": 9.5, "test": 1, "total": 27}
    assert ended["peak_memory_gib"] == 5 and "spent" not in ended and has_ended(ended)
    assert ended["command"] == "python scripts/tune_k.py --trials 2"
    record_run(session_at(run, results, 1), SOURCES)
    record_run(session_at(run, results, 3, search=2), SOURCES, PREPARED)
    assert results.read_record()["seconds"] == {"probe": 10, "search": 11.5, "test": 1, "total": 30}
    assert results.read_record()["peak_memory_gib"] == 5


def test_a_signature_is_not_written_down(tmp_path, monkeypatch):
    """Neither in the settings of run.json nor in its command; a run is resumed with it or without."""
    place = "https://h/a.jsonl?id=5&X-Amz-Signature=c0ffee"
    monkeypatch.setattr("sys.argv", ["scripts/tune_k.py", "--domain", f"{place}/=3", "b"])
    run = SearchRun(name="x", storage=str(tmp_path), domain=[f"{place}/=3", "b"])
    results = Results(str(tmp_path), "x")
    record_run(session_at(run, results, 1), SOURCES)
    kept = results.read_record()
    assert "c0ffee" not in str(kept) and "id=5&/=3" in kept["command"]
    assert resume_settings(run, kept["run"]).domain == run.domain
    assert resume_settings(SearchRun(name="x"), kept["run"]).domain == run.domain.unsigned


def test_best_yaml_holds_a_run_that_can_be_read_again(tmp_path):
    """The settings of the run alone, flat as its flags are, and none of the search's own."""
    run = SearchRun(name="x", workers=2, trials=9)
    results = Results(str(tmp_path), "x")
    work = SimpleNamespace(training=TrainingSpec(k=2), layers=(1, 3), weights=ScoreWeights())
    prepared = SimpleNamespace(sources=SimpleNamespace(backbone=SimpleNamespace(fingerprint="0123")))
    record_best(Session(run, results, Display()), prepared, work, {"score": 1.0}, {"k": 2}, 8)
    best = yaml.safe_load((results.folder / "best.yaml").read_text())
    assert list(best["run"]) == list(RunSpec.flat_fields()) and best["run"]["workers"] == 2
    assert RunSpec(**best["run"]).model_dump() == RunSpec(name="x", workers=2).model_dump()
    assert (best["layers"], best["k_max"], best["backbone"]) == ([1, 3], 8, "0123")

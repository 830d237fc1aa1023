"""Which values of a run hold now, for those who watch it from outside."""

from adept_ray.engine.metrics import RunNumbers

RUN, TRIAL = "watched", "trial-007"


def test_a_trial_that_is_over_keeps_what_it_reached_and_moves_no_more():
    """Speed and step are said of running trainings alone; before its k is known nothing is said of one."""
    numbers = RunNumbers()
    numbers.record_training(TRIAL, {"step": 3})
    assert list(numbers.list_values(RUN)) == []
    numbers.record_training(
        TRIAL, {"k": 1, "running": True, "score": 2.5, "tokens_per_second": 7.0, "domain_bpb": None}
    )
    assert {name for name, *_ in numbers.list_values(RUN)} == {
        f"adept_{name}" for name in ("running", "k", "score", "step", "tokens_per_second")
    }
    numbers.record_training(TRIAL, {"running": False})
    assert {name: value for name, value, _ in numbers.list_values(RUN)} == {
        "adept_running": 0.0,
        "adept_k": 1.0,
        "adept_score": 2.5,
    }

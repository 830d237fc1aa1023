"""A verdict on a trial's report is given once."""

from adept_ray.engine.verdicts import TrialVerdicts


def test_the_first_word_on_a_report_holds():
    """For that report of that trial alone."""
    verdicts = TrialVerdicts()
    assert verdicts.find_verdict("trial-001", 1) is None
    verdicts.give_verdict("trial-001", 1, True)
    verdicts.give_verdict("trial-001", 1, False)
    verdicts.give_verdict("trial-002", 1, False)
    assert verdicts.find_verdict("trial-001", 1) is True and verdicts.find_verdict("trial-002", 1) is False
    assert verdicts.find_verdict("trial-001", 2) is None

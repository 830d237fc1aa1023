"""What run.json is written from, made up."""

from types import SimpleNamespace

from adept_ray.run.context import Session

SOURCES = SimpleNamespace(
    backbone=SimpleNamespace(name="tiny", note="ours"),
    list_corpora=lambda: {"general": SimpleNamespace(name="boolq", note="CC", omitted="")},
    fingerprints={"backbone": "0123"},
)
PREPARED = SimpleNamespace(fingerprints={"backbone": "0123"}, contamination=None)
SPACE = "parameters: {k: {int: [1, 3]}, base_lr: {log: [0.001, 0.1]}}\nfirst: [{k: 2, base_lr: 0.02}]\n"


def session_at(run, results, total, **seconds):
    """The session of a command that began so many seconds ago, and those of its stages."""
    return Session(run, results, SimpleNamespace(seconds=seconds, count_seconds=lambda: total))

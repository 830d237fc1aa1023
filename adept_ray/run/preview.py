"""What a search would be made of, as far as it can be found: one fault hides no other."""

from __future__ import annotations

from dataclasses import dataclass

from adept_ray.config.specs import SearchRun
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.benchmark_tasks import draw_items
from adept_ray.data.loading import Backbone
from adept_ray.data.mixing import NO_CORPUS, MixedCorpus
from adept_ray.method.scores import SIDES
from adept_ray.run.check_list import CheckList
from adept_ray.run.examination import Examination, plan_examination
from adept_ray.run.keepers import check_keepers
from adept_ray.run.model_checks import load_checked_config
from adept_ray.run.question import Question, pose_question
from adept_ray.run.search_settings import load_space
from adept_ray.run.sources import Sources
from adept_ray.run.terminal import Display
from adept_ray.run.texts import find_text


@dataclass(frozen=True)
class Preview:
    """A search as far as it is known."""

    backbone: Backbone | None
    sources: Sources | None
    """None without a backbone that can be used; a text that can't be found is an empty one."""
    question: Question | None

    def plan_examination(self, run: SearchRun) -> Examination:
        """What can be examined of a cluster."""
        if self.sources and self.question:
            return plan_examination(run, self.sources, self.question)
        return Examination(run, self.backbone, None)


def preview_search(run: SearchRun, checks: CheckList, display: Display) -> Preview:
    """Find backbone, texts, tasks, study and space of a search; what can't be used is among the checks."""
    check_keepers(run, checks)
    space = checks.attempt("space", lambda: load_space(run, {}), lambda _: str(run.search_space))
    with display.show_stage("assets", "backbone and corpora"):
        backbone = checks.attempt("backbone", lambda: find_backbone(run), lambda each: each.note)
        corpora = {side: find_corpus(run, side, backbone, checks) for side in SIDES}
        for side in SIDES:
            find_items(run, side, checks)
    if backbone is None:
        return Preview(None, None, None)
    read = checks.attempt("config", lambda: load_checked_config(backbone, run.seq_len), lambda _: "")
    if read is None:
        return Preview(backbone, None, None)
    sources = Sources(backbone, read, corpora["general"] or NO_CORPUS, corpora["domain"] or NO_CORPUS)
    question = None
    if space is not None:
        question = checks.attempt("question", lambda: pose_question(run, space, sources), describe_question)
    return Preview(backbone, sources, question)


def find_backbone(run: SearchRun) -> Backbone:
    """The backbone of a run. Raises :class:`UserError`."""
    cache, dtype = run.machine.local_cache, run.machine.dtype
    return resolve_backbone(run.backbone, cache, run.trust_remote_code, dtype)


def find_corpus(
    run: SearchRun, side: str, backbone: Backbone | None, checks: CheckList
) -> MixedCorpus | None:
    """The text of a side, None if it can't be used."""
    tokens = run.tokens_per_trial if side == "domain" else 0
    return checks.attempt(
        f"{side} text", lambda: find_text(run, side, tokens, {}, backbone), lambda found: found.name
    )


def find_items(run: SearchRun, side: str, checks: CheckList) -> None:
    """Look whether the benchmark tasks of a side can be had, if it has any."""
    if names := getattr(run, f"{side}_tasks"):
        cache = run.machine.local_cache
        checks.attempt(
            f"{side} tasks",
            lambda: draw_items(names, run.task_items, run.seed, cache),
            lambda items: f"{len(items['validation'])} items for validation",
        )


def describe_question(question: Question) -> str:
    """The space that is searched, in a few words."""
    names = ", ".join(name for name in question.space.parameters if name != "k")
    return f"k up to {question.deepest.k}, and {names}"

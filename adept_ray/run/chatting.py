"""The untouched backbone and what was made of it, asked the same questions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from adept_ray.config.errors import UserError, shorten_error
from adept_ray.config.model_specs import ChatRun
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.hub_client import PATIENCE
from adept_ray.data.hub_files import fetch_missing_files
from adept_ray.data.loading import Backbone, load_model, load_tokenizer, silence_transformers
from adept_ray.run.settings import check_trust, list_known_fingerprints, load_best
from adept_ray.run.terminal import WIDE, Display
from adept_ray.run.texts import check_unchanged
from adept_ray.storage.files import fetch_temporarily, open_filesystem
from adept_ray.storage.records import BestRecord

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ASK = "\n> "


@dataclass(frozen=True)
class Pair:
    """Both models, and the tokenizer that they share."""

    models: Mapping[str, PreTrainedModel]
    tokenizer: PreTrainedTokenizerFast


def load_pair(run: ChatRun, display: Display) -> Pair:
    """Load both models to a GPU if there is one.

    Raises :class:`UserError` for results without a model, and for a backbone that has changed since.
    """
    import torch

    PATIENCE.say = display.say
    best = read_finished(run.results)
    check_trust(run.trust_remote_code, best["run"], run.results)
    device, dtype = ("cuda", "bfloat16") if torch.cuda.is_available() else ("cpu", "float32")
    began, name = list_known_fingerprints(best), str(best["run"]["backbone"])
    backbone = resolve_backbone(name, run.cache, run.trust_remote_code, dtype, began.get("backbone", ""))
    check_unchanged("backbone", backbone, began)
    with display.show_stage("model", "both models") as update:
        if backbone.revision:
            fetch_missing_files(backbone.source, backbone.revision, update)
        models = {"backbone": load_model(backbone, device)}
        with fetch_temporarily(f"{run.results}/model") as folder:
            result = Backbone(run.results, str(folder), trusted=run.trust_remote_code, dtype=dtype)
            models["result"] = load_model(result, device)
    return Pair(models, load_tokenizer(backbone))


def read_finished(place: str) -> BestRecord:
    """The best.yaml of results that have a model. Raises :class:`UserError` where there is none."""
    filesystem, path = open_filesystem(place)

    def has(name: str) -> bool:
        return bool(filesystem.get_file_info(f"{path}/{name}").is_file)

    if not has("run.json"):
        raise UserError(f"{place} holds no results: give a results folder, such as results/NAME")
    if not (has("best.yaml") and has("model/config.json")):
        raise UserError(f"{place} has no model yet: its search or training has to come to its end first")
    return load_best(f"{place}/best.yaml")


def list_questions(run: ChatRun, display: Display) -> Iterator[str]:
    """The one of ``--prompt``, or every line that is typed or comes from a pipe, until there are no more."""
    if run.prompt:
        yield run.prompt
        return
    typed = sys.stdin.isatty() and display.live
    lines = iter(partial(input, ASK), None) if typed else sys.stdin
    if typed:
        display.show("type a question; Ctrl-D ends")
    with suppress(EOFError, KeyboardInterrupt):
        yield from (line.strip() for line in lines if line.strip())


def ask_both(pair: Pair, question: str, run: ChatRun) -> dict[str, str]:
    """Model → its answer."""
    inputs = encode_question(pair.tokenizer, question)
    return {name: answer(model, pair.tokenizer, inputs, run) for name, model in pair.models.items()}


def encode_question(tokenizer: PreTrainedTokenizerFast, question: str) -> torch.Tensor:
    """Token ids [1, N]: the user's turn by the chat template, or the bare text, which is then continued.

    Raises :class:`UserError` for a template that refuses such a turn.
    """
    if not tokenizer.chat_template:
        return cast("torch.Tensor", tokenizer(question, return_tensors="pt")["input_ids"])
    turn = [{"role": "user", "content": question}]
    options: Any = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    try:
        encoded: Any = tokenizer.apply_chat_template(turn, **options)
    except Exception as problem:  # whatever someone else's template raises
        raise UserError(
            f"the tokenizer's chat template refuses a question alone: {shorten_error(problem)}"
        ) from None
    return cast("torch.Tensor", encoded["input_ids"])


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, inputs: torch.Tensor, run: ChatRun
) -> str:
    """What a model writes behind `inputs`, token ids [1, N]."""
    import torch

    torch.manual_seed(run.seed)
    drawing = {"temperature": run.temperature, "do_sample": True} if run.temperature else {"do_sample": False}
    usual = {"temperature": None, "top_p": None, "top_k": None}  # a model's own would be for drawing
    ids = inputs.to(model.device)
    generate: Any = model.generate  # its own types are wrong
    with torch.inference_mode(), silence_transformers():
        made = generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=run.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **{**usual, **drawing},
        )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)).strip()


def show_answers(display: Display, question: str, answers: Mapping[str, str]) -> None:
    """Show both answers: side by side where there is room, else one below the other."""
    display.emit("answers", question=question, **answers)
    display.console.print(lay_out(answers, display.console.width))


def lay_out(answers: Mapping[str, str], width: int) -> RenderableType:
    """The answers as a terminal of `width` columns shows them."""
    if width < WIDE:
        return Group(*(Group(Rule(name, align="left"), Text(text)) for name, text in answers.items()))
    table = Table(*answers, expand=True, box=None, header_style="bold", padding=(0, 2, 0, 0))
    for column in table.columns:
        column.ratio = 1
    table.add_row(*map(Text, answers.values()))
    return table

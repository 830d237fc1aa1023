"""``model/README.md``: the model card, the report's facts in the form that the Hugging Face hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adept_ray.data.backbones import PRESETS
from adept_ray.data.hub import HUB_ID
from adept_ray.method.copies import added_layers
from adept_ray.report.evidence import Evidence
from adept_ray.report.html import format_duration
from adept_ray.report.records import Side, Test, list_corpora
from adept_ray.report.rerun import format_rerun
from adept_ray.storage.files import write_text

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

ENGLISH = {"boolq", "medical", "math"}  # corpora whose language is known
PAPER = "https://arxiv.org/abs/2510.10071"


def write_card(model: Path, results: Evidence) -> Path:
    """Write the card of an exported model's folder; returns its path."""
    return write_text(model / "README.md", str(build_card(results)))


def build_card(results: Evidence) -> ModelCard:
    """What the model is, the evidence for it and its limits, with metadata for the hub."""
    from huggingface_hub import ModelCard

    sections = {
        "Layers": list_layers(results),
        "Evidence": list_evidence(results),
        "How to load it": explain_loading(results),
        "Training data and licences": list_sources(results),
        "Limits": list_limits(results),
        "How it was made": describe_making(results),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    head = f"---\n{build_card_data(results).to_yaml()}\n---\n\n"
    return ModelCard(
        f"{head}# {results.name}\n\n{describe_model(results)}\n\n{body}\n", ignore_metadata_errors=False
    )


def build_card_data(results: Evidence) -> ModelCardData:
    """The card's front matter, without what isn't known."""
    from huggingface_hub import ModelCardData

    run = results.best.run
    backbone = str(run.get("backbone", ""))
    preset = PRESETS.get(backbone)
    on_hub = HUB_ID.fullmatch(backbone) and ":" not in backbone and not Path(backbone).exists()
    base = preset.model if preset else backbone if on_hub else None
    return ModelCardData(
        model_name=results.name,
        base_model=base,
        base_model_relation="finetune" if base else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        license=preset.license if preset else None,
        language="en" if {*list_corpora(run, "general"), *list_corpora(run, "domain")} <= ENGLISH else None,
        tags=["adept", "continual-pretraining", "layer-expansion"],
        eval_results=[*list_results(results, "general"), *list_results(results, "domain")],
    )


def list_results(results: Evidence, name: str) -> list[EvalResult]:
    """What the model reaches on the test split of a side."""
    from huggingface_hub import EvalResult

    side: Side = getattr(results.best.test, name)
    values = {"bits_per_byte": side.after_bpb, "accuracy": side.after_accuracy}
    corpus = " + ".join(Path(each).name for each in list_corpora(results.best.run, name)) or name
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=corpus,
            dataset_name=f"{corpus} ({name})",
            dataset_split="test",
            metric_type=metric,
            metric_value=round(value, 4),
        )
        for metric, value in values.items()
        if value is not None
    ]


def describe_model(results: Evidence) -> str:
    """What the model is, after a warning where the search advises against it."""
    run, k = results.best.run, results.best.k
    domain = " ".join(list_corpora(run, "domain"))
    advice = (
        f"**The search that made this model advises against it (k = 0): nothing that it tried is surely "
        f"better than `{run.get('backbone')}` as it is.**\n\n"
    )
    return advice * results.advises_against + (
        f"`{run.get('backbone')}` with {k or 'no'} added layer{'' if k == 1 else 's'}, adapted to "
        f"`{domain}` text by [ADEPT]({PAPER}): {describe_placement(results)} are copied as "
        f"identities and only the copies are trained, {describe_rates(results)}. All other "
        "weights are the backbone's, bit for bit."
    )


def describe_placement(results: Evidence) -> str:
    """The layers that were copied, in words."""
    placement = results.best.training.get("placement", "guided")
    if placement == "guided":
        return "the least important layers"
    if placement == "stratified":
        return "the least important layers of bands of equal depth"
    return f"layers chosen by the placement `{placement}`, not by their importance,"


def describe_rates(results: Evidence) -> str:
    """The rates at which the copies were trained, in words."""
    training = results.best.training
    if training.get("normalization") == "none":
        return "all at one rate"
    sign = " (reversed: the more important the faster)" if training.get("sign") == "reverse" else ""
    units = "attention, mlp and norms" if training.get("granularity") == "block" else "units"
    return f"each of their {units} at a rate of its own{sign}"


def list_layers(results: Evidence) -> str:
    """Which layers are copies, and what they cost."""
    layers = sorted(results.best.layers)
    rows = [f"| {added} | {source} |" for source, added in zip(layers, added_layers(layers), strict=True)]
    table = "\n".join(["| layer of this model | is a copy of the backbone's |", "|---|---|", *rows])
    depth, cost = len(results.importance.layers), results.cost
    text = f"{depth} layers became {depth + len(layers)}"
    if cost and cost.added:
        share, slower = cost.added / (cost.parameters - cost.added), cost.flops / cost.flops_before - 1
        text += (
            f", {cost.parameters / 1e6:.1f} M parameters of which {cost.added / 1e6:.1f} M are new "
            f"({share:.1%}); a forward pass takes {slower:.1%} more operations per token"
        )
    return f"{text}.\n\n{table}" if layers else "No layer was added: this is the backbone."


def list_evidence(results: Evidence) -> str:
    """What the test split says, why this k, and the score of each k."""
    test, choice = results.best.test, results.best.choice
    rows = [format_side(results, "domain", test.domain), format_side(results, "general", test.general)]
    head = ["| test split | before → after | change, better is positive |", "|---|---|---|"]
    parts = [
        "\n".join([*head, *rows]),
        "Measured once, against the untouched backbone, ± one standard error.",
    ]
    if turned := explain_dial(test):
        parts.append(turned)
    if results.reason:
        parts.append(f"Why k = {results.best.k}: {results.reason}")
    scores = [
        f"| {depth.k} | {format_with_error(depth.score, depth.standard_error if depth.k else None)} | "
        f"{format_with_error(depth.gain, depth.gain_error)} |"
        for depth in results.depths
        if depth.score is not None
    ]
    if scores:
        formula = f" ({results.best.score.format_formula()})" if results.best.score else ""
        kind = "expected" if any(depth.rate for depth in results.depths) else "best"
        head = [f"| k | {kind} validation score{formula} | over the next smaller k |", "|---|---|---|"]
        parts.append("\n".join([*head, *scores]))
    if choice and choice.hyperparameters:
        ranked = sorted(choice.hyperparameters.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {share:.0%}" for name, share in ranked)
        doubt = "" if choice.hyperparameters_reliable else " (a guess: of too few trials)"
        parts.append(f"What mattered: {shares}{doubt}.")
    return "\n\n".join(parts)


def explain_dial(test: Test) -> str:
    """How far the model is turned from its backbone, and the test as it was trained; empty where it isn't."""
    if not test.is_turned or test.plain is None:
        return ""
    return (
        f"The model is turned to dial {test.dial:g} between its backbone (0) and what training made of it "
        "(1): what the copies add to the residual stream is scaled by it. It is folded into the weights, so "
        f"nothing has to be done for it. Test score there {test.score:+.2f}, as it was trained "
        f"{test.plain.score:+.2f} (general {test.plain.general_delta:+.2f}, domain "
        f"{test.plain.domain_delta:+.2f})."
    )


def format_with_error(value: float | None, error: float | None) -> str:
    """A number with its standard error; empty where there is none."""
    if value is None:
        return ""
    return f"{value:+.2f}" + ("" if error is None else f" ± {error:.2f}")


def format_side(results: Evidence, name: str, side: Side) -> str:
    """A side's line of the table."""
    error = "" if side.standard_error is None else f" ± {side.standard_error:.2f}"
    corpus = Path(str(results.best.run.get(name, ""))).name
    levels = side.describe_levels("bits per byte")
    return f"| {name}: {corpus} | {levels} | {side.delta:+.2f}{error} {side.unit} |"


def explain_loading(results: Evidence) -> str:
    """The code that loads the model."""
    trusted = results.best.run.get("trust_remote_code", False)
    kind = "with the backbone's own Python code" if trusted else "no remote code"
    code = ", trust_remote_code=True" if trusted else ""
    return (
        f"A plain Hugging Face folder, {kind}:\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'folder = "path/to/this/folder"\n'
        f"model = AutoModelForCausalLM.from_pretrained(folder{code})\n"
        f"tokenizer = AutoTokenizer.from_pretrained(folder{code})\n```"
    )


def list_sources(results: Evidence) -> str:
    """What it was trained on, with licences."""
    tokens = results.best.training.get("tokens")
    trained = f"Trained on {tokens:,} tokens of the domain text.\n\n" if tokens else ""
    return trained + "\n".join(f"- {name}: {note}" for name, note in results.run.notes.items())


def list_limits(results: Evidence) -> str:
    """What the numbers don't say."""
    limits = [
        "Nothing was measured but what the table above shows: not safety, not facts, not how well it "
        "follows instructions.",
        "The standard errors are over test text; another seed of the training would give another model.",
        "Part of a gain on general text may be recovery, for example of a backbone that was quantized or "
        "tuned to follow instructions, and not knowledge kept.",
    ]
    doubt = results.importance.express_doubt(results.best.layers)
    edges = [
        edge.describe_place() + ("." if edge.held else ", so a better value may lie beyond it.")
        for edge in (results.best.choice.edges if results.best.choice else ())
    ]
    return "\n".join(f"- {limit}" for limit in [*limits, *([doubt] if doubt else []), *edges])


def describe_making(results: Evidence) -> str:
    """The command, settings and versions that made it."""
    versions = ", ".join(f"{name} {version}" for name, version in results.run.versions.items())
    settings = "\n".join(f"- {name}: {value}" for name, value in results.best.training.items())
    memory = results.run.peak_memory_gib
    length = f"It took {format_duration(results.run.total_seconds)}" + (
        "" if memory is None else f" and at most {memory:.1f} GiB"
    )
    prints = ", ".join(f"{name} {value}" for name, value in results.run.fingerprints.items())
    return (
        f"```\n{format_rerun(results.run)}\n```\n\n{length}.\n\nTraining of the model:\n\n{settings}\n\n"
        f"Versions: {versions}.\n\nFingerprints: {prints}."
    )

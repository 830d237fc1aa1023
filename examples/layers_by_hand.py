"""ADEPT by hand: from the importance of layers to an exported model, in plain torch and without Ray.

python examples/layers_by_hand.py                      # SmolLM2 on medical text, a few minutes
python examples/layers_by_hand.py --backbone path/to/model --text my_domain.jsonl

The cells (# %%) run one by one in an editor or a notebook. What `adept-ray tune-k` searches is fixed
here: how many layers to copy, the learning rate, and how often the units are measured again.
"""

# %% What to work on
import argparse
import copy
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from adept_ray import (
    expand,
    export,
    layer_importance,
    parameter_groups,
    select_layers,
    set_rates,
    source_importance,
    unit_importance,
    unit_rates,
    unit_scales,
)
from adept_ray.config.places import default_cache
from adept_ray.data.backbones import resolve_backbone
from adept_ray.data.corpora import resolve_corpus
from adept_ray.data.shards import read_in_order

flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
flags.add_argument("--backbone", default="smollm2-135m", help="a preset, a folder or a hub id")
flags.add_argument(
    "--text", default="medical", help="text to learn: a preset, or a .jsonl, .parquet or .txt file"
)
flags.add_argument("--general", default="boolq", help="text that must not get worse, given like --text")
flags.add_argument("--output", default="results/by_hand", help="folder of the exported model")
given, _ = flags.parse_known_args()  # a notebook has flags of its own

K = 2  # layers to add
BASE_LR = 3e-3  # the rate of a unit of average importance
STEPS, REMEASURE = 16, 8  # optimizer steps, and after how many the units are measured again
SEQUENCES, LENGTH = 4, 96  # a batch

# %% A backbone, and batches of general and of domain text
torch.manual_seed(0)
found = resolve_backbone(given.backbone, default_cache())
tokenizer = AutoTokenizer.from_pretrained(found.source, revision=found.revision)
model = AutoModelForCausalLM.from_pretrained(
    found.source, revision=found.revision, dtype=torch.float32
).eval()


def make_batches(corpus: str, count: int) -> list[dict[str, torch.Tensor]]:
    """The first documents of a corpus as batches of token ids, one document after the other."""
    texts = read_in_order(resolve_corpus(corpus, "text", default_cache()).shards)
    ids: list[int] = []
    for text in texts:
        ids += [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
        if len(ids) >= count * SEQUENCES * LENGTH:
            break
    count = min(count, len(ids) // (SEQUENCES * LENGTH))
    blocks = torch.tensor(ids[: count * SEQUENCES * LENGTH]).view(count, SEQUENCES, LENGTH)
    return [{"input_ids": block} for block in blocks]


def measure_loss(batches: list[dict[str, torch.Tensor]]) -> float:
    """Mean next-token loss of the model as it is now, in nats per token."""
    with torch.no_grad():
        return sum(float(model(**batch, labels=batch["input_ids"]).loss) for batch in batches) / len(batches)


general = make_batches(given.general, 4)
probe, held_out_general = general[:2], general[2:]  # what is measured on must not be what is judged on
domain = make_batches(given.text, STEPS + 2)
training, held_out_domain = domain[:-2], domain[-2:]

# %% Stage 1: how much does general text suffer without a layer?
importance = layer_importance(model, probe)
for layer in importance.order[:5]:
    print(f"without layer {layer:2}: {importance.mean[layer]:+.4f} nats per token")

# %% The K layers that matter least are copied; what their units are worth is measured before that
layers = select_layers(importance, K)
units = unit_importance(model, probe, layers)
print(f"layers to copy: {layers}")

# %% A copy behind each of them, with zeroed output projections: the logits stay the same, bit for bit
untouched = copy.deepcopy(model.state_dict())
before = {"general": measure_loss(held_out_general), "domain": measure_loss(held_out_domain)}
with torch.no_grad():
    logits = model(**probe[0]).logits
    added = expand(model, layers)  # in place; only the copies require gradients now
    same = torch.equal(model(**probe[0]).logits, logits)
print(f"copies are layers {added}; same logits: {same}")

# %% Every unit of a copy has its own rate: the more it matters to general text, the slower it learns.
# In a fresh copy every unit's importance is 0, so the first rates come from the layers that were copied.
first = source_importance(units, layers)
for name, rate in sorted(unit_rates(first, BASE_LR).items(), key=lambda pair: pair[1])[:: len(first) // 5]:
    print(f"{rate:.1e}  {name}")

# %% Stage 2: train the copies, and measure their units again every REMEASURE steps
optimizer = torch.optim.AdamW(parameter_groups(model))  # a group a unit; set_rates gives it its rate
scales = unit_scales(first)
losses = []
for step, batch in enumerate(training):
    if step and step % REMEASURE == 0:
        scales = unit_scales(unit_importance(model, probe, added))
    set_rates(optimizer, BASE_LR, min(1.0, (step + 1) / 4), scales)  # the third: a warm-up over four steps
    loss = model(**batch, labels=batch["input_ids"]).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
    print(f"step {step + 1:2}: {losses[-1]:.3f}")

# %% What it gained, and that the backbone is what it was
after = {"general": measure_loss(held_out_general), "domain": measure_loss(held_out_domain)}
for side in before:
    print(f"{side:8} {before[side]:.3f} → {after[side]:.3f} nats per token on text that wasn't trained on")
trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
# Layers behind a copy have another number now, but their order is the same.
now = {name: value for name, value in model.state_dict().items() if name not in trained}
unchanged = all(torch.equal(a, b) for a, b in zip(untouched.values(), now.values(), strict=True))
print(f"the backbone is unchanged: {unchanged}")

# %% A plain Hugging Face folder, which anything that knows the backbone's family loads
folder = export(model, Path(given.output), tokenizer, {"added_layers": added, "source_layers": layers})
again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
with torch.no_grad():
    reloaded = torch.equal(again(**probe[0]).logits, model(**probe[0]).logits)
print(f"{folder}: {again.config.num_hidden_layers} layers, same logits: {reloaded}")

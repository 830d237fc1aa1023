"""Read a results folder with pandas: the table of k, the choice, what it gained, and how the trials learned.

python examples/read_results.py results/NAME

A search leaves such a folder. docs/results.md describes every file of it.
"""

# %% Which folder
import json
import sys
from pathlib import Path

import pandas as pd
import yaml

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "results/demo")

# %% trials.csv has a row for each trial, and one for the untouched backbone (k = 0), whose score is 0
trials = pd.read_csv(folder / "trials.csv")
# A trial that was stopped early was trained on fewer tokens: its score doesn't compare.
finished = trials[trials["state"].isin(["finished", "untouched"])]
rows = finished.loc[finished.groupby("k")["score"].idxmax()]
table = rows.set_index("k")[["trial", "general_delta", "domain_delta", "score", "score_se"]]
print(f"The best finished trial of each k, changes in percent of bits per byte:\n{table.round(2)}\n")

# %% best.yaml holds the choice, and the one look at the test splits
best = yaml.safe_load((folder / "best.yaml").read_text(encoding="utf-8"))
choice, test = best["choice"], best["test"]
print(f"chosen: k = {choice['k']}, copies of layers {best['layers']}\n{choice['reason']}\n")
gains = pd.DataFrame({side: test[side] for side in ("general", "domain")}).T
print(f"On the test splits:\n{gains[['before_bpb', 'after_bpb', 'delta', 'standard_error']]}\n")

# %% importance.json says how far the loss on general text rises without a layer, in nats per token
importance = json.loads((folder / "importance.json").read_text(encoding="utf-8"))
layers = pd.DataFrame(importance["layers"]).set_index("layer").loc[importance["order"]]
layers["copied"] = layers.index.isin(best["layers"])
print(f"Layers, the least important one first:\n{layers[['mean', 'standard_error', 'copied']].round(3)}\n")

# %% curves.jsonl has a row for each report of each trial; a folder of an older version has none
if (folder / "curves.jsonl").exists():
    curves = pd.read_json(folder / "curves.jsonl", lines=True)
    scores = curves.pivot(index="tokens", columns="trial", values="score")
    print(f"Score by the tokens that a trial had seen:\n{scores.round(2)}")

# %% dials.csv has a row for each dial at which a trial was read at its end, if a dial was looked for
if (folder / "dials.csv").exists():
    dials = pd.read_csv(folder / "dials.csv").pivot(index="dial", columns="trial", values="score")
    print(f"\nScore by the dial, from the backbone (0) to what was trained (1):\n{dials.round(2)}")

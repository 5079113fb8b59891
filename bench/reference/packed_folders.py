"""Compares folders of rounded weights, as transformers and compressed-tensors load them, with Lathe.

    LATHE_WRITE_MODELS=DIR cargo test --release -p convert --test rounded_folders
    pip install torch transformers compressed-tensors
    python bench/reference/packed_folders.py DIR

Each folder has `expected.json`: ids and the logits that Lathe computes with the numbers that the
codes stand for. The folder is loaded with AutoModelForCausalLM, so that compressed-tensors unpacks
it. Prints the largest difference of each, relative to the largest logit (1 at least), and fails
above 1e-4, or where a folder was loaded as one without quantisation.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def check(folder):
    given = json.loads((folder / "expected.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if getattr(model, "hf_quantizer", None) is None:
        return None
    ids = torch.tensor([given["ids"]])
    logits = torch.tensor(given["logits"]).view(ids.shape[1], -1)
    with torch.no_grad():
        found = model(ids).logits[0].float()
    return (found - logits).abs().max().item() / max(1.0, logits.abs().max().item())


def main(root):
    folders = sorted(path.parent for path in Path(root).glob("*/expected.json"))
    faults = 0 if folders else 1
    for folder in folders:
        apart = check(folder)
        good = apart is not None and apart <= 1e-4
        faults += not good
        said = "not loaded as quantised" if apart is None else f"{apart:.2e} apart"
        print(f"{folder.name}: {said}{'' if good else ' FAILS'}")
    print(f"{len(folders)} folders, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

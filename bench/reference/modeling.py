"""Compares exported folders, as transformers runs them, with what Lathe computed.

    LATHE_WRITE_MODELS=DIR cargo test --release -p convert --test modeling
    python bench/reference/modeling.py DIR

Each folder has `expected.json`: a prompt, its logits and depths, and the greedy text behind it. The
folder is loaded with AutoModelForCausalLM; logits at once and token by token through the cache,
depths, greedy text, and a batch with padding on the left must agree. Prints the worst difference of
each kind, and fails at a difference above 1e-4 of the largest logit (1 at least), or another depth
or token.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def check(folder):
    given = json.loads((folder / "expected.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    prompt = torch.tensor([given["prompt"]])
    logits = torch.tensor(given["logits"]).view(len(given["prompt"]), -1)
    depths = torch.tensor([given["depths"]])
    size = max(1.0, logits.abs().max().item())
    whole = model(prompt)
    faults = []
    if not torch.equal(whole.depths, depths):
        faults.append(f"depths {whole.depths.tolist()}, expected {depths.tolist()}")
    at_once = (whole.logits[0] - logits).abs().max().item() / size

    name, cache, rows = sys.modules[type(model).__module__].CACHE, None, []
    for t in range(prompt.shape[1]):
        step = model(prompt[:, t : t + 1], use_cache=True, **{name: cache})
        cache = step[name]
        rows.append(step.logits[0, 0])
    by_token = (torch.stack(rows) - logits).abs().max().item() / size

    shorter = prompt[:, 5:]
    batch = torch.stack([prompt[0], torch.cat([prompt.new_zeros(5), shorter[0]])])
    mask = torch.ones_like(batch)
    mask[1, :5] = 0
    padded = model(batch, attention_mask=mask)
    alone = model(shorter)
    beside = (padded.logits[0] - logits).abs().max().item() / size
    below = (padded.logits[1, 5:] - alone.logits[0]).abs().max().item() / size

    for use_cache in (True, False):
        text = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=len(given["greedy"]),
            do_sample=False,
            use_cache=use_cache,
            pad_token_id=0,
            eos_token_id=None,
        )[0, prompt.shape[1] :].tolist()
        if text != given["greedy"]:
            faults.append(f"greedy {text}, expected {given['greedy']}, cache {use_cache}")
    differences = {"at once": at_once, "by token": by_token, "in a batch": max(beside, below)}
    faults.extend(f"{what} {d:.1e}" for what, d in differences.items() if not d < 1e-4)
    return differences, faults


def main():
    torch.set_num_threads(1)
    worst, wrong, count = {}, 0, 0
    for folder in sorted(path.parent for path in Path(sys.argv[1]).glob("*/expected.json")):
        differences, faults = check(folder)
        count += 1
        for what, difference in differences.items():
            worst[what] = max(worst.get(what, 0.0), difference)
        if faults:
            wrong += 1
            print(folder.name, *faults, sep="\n    ")
    print(f"{count} folders, {wrong} wrong;", ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))
    sys.exit(1 if wrong or not count else 0)


main()

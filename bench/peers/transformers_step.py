#!/usr/bin/env python3
"""Optimizer steps of a Mixture-of-Experts model of transformers on random tokens: the peer of `lathe bench train`.

    transformers_step.py --config shapes/olmoe-15m.json --experts grouped_mm --batch 2,512 --steps 5
    transformers_step.py --config shapes/olmoe-15m.json --experts eager --compile
    transformers_step.py --config shapes/olmoe-15m.json --write FOLDER && lathe verify FOLDER

--config: a config.json, whose model gets random weights. --experts: how transformers computes experts (eager, batched_mm,
grouped_mm). The step is forward, cross-entropy over all positions, backward, clipping of the gradient's norm to 1 and fused
AdamW, in f32, with scaled-dot-product attention. Steps and checks are those of rounds.py; --ask: a round for each line of
the standard input. Prints JSON.

--write times nothing: it leaves the model in FOLDER with its logits, streams, choices of experts, loss and gradients on two
short sequences, for `lathe verify`.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from rounds import rounds

SHORT = (2, 48)


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    sequences, length = (int(part) for part in options.batch.split(","))
    config = transformers.AutoConfig.for_model(**json.loads(options.config.read_text()))
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="sdpa", experts_implementation=options.experts, dtype=torch.float32
    )
    model.train()
    if options.write:
        return write(model, config, options.write)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    logits_of = torch.compile(model) if options.compile else model
    tokens = torch.randint(0, config.vocab_size, (sequences, length + 1))
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step():
        optimizer.zero_grad()
        logits = logits_of(input_ids=ids, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    for seconds, losses in rounds(step, options.steps, options.ask):
        print(json.dumps({
            "bench": "transformers", "torch": torch.__version__, "transformers": transformers.__version__,
            "experts": options.experts, "compile": options.compile, "threads": options.threads,
            "parameters": sum(p.numel() for p in model.parameters()), "tokens": sequences * length, "seconds": seconds,
            "losses": losses, "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }), flush=True)


def write(model, config, folder):
    """The model as a folder, and what it computed."""
    model.save_pretrained(folder)
    ids = torch.randint(0, config.vocab_size, SHORT)
    found = model(input_ids=ids, use_cache=False, output_hidden_states=True, output_router_logits=True)
    loss = functional.cross_entropy(found.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    kept = {"input_ids": ids, "logits": found.logits}
    kept |= {f"hidden.{i}": stream for i, stream in enumerate(found.hidden_states)}
    for layer, logits in enumerate(found.router_logits):
        weights, experts = torch.softmax(logits, -1).topk(config.num_experts_per_tok, -1)
        if config.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        experts, order = experts.sort(-1)
        kept |= {f"router_logits.{layer}": logits, f"experts.{layer}": experts.int()}
        kept[f"weights.{layer}"] = weights.gather(-1, order)
    # Gradients get the names of files by being saved in the place of the weights.
    with torch.no_grad(), tempfile.TemporaryDirectory() as place:
        for weight in model.parameters():
            weight.copy_(weight.grad)
        model.save_pretrained(place)
        kept |= {f"grad.{name}": values for name, values in load_file(Path(place) / "model.safetensors").items()}
    save_file({name: values.detach().contiguous().clone() for name, values in kept.items()}, folder / "refs.safetensors")
    (folder / "refs.json").write_text(json.dumps({"ce": loss.item()}) + "\n")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--experts", default="grouped_mm", choices=["eager", "batched_mm", "grouped_mm"])
    parser.add_argument("--batch", default="2,512")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ask", action="store_true")
    parser.add_argument("--write", type=Path, metavar="FOLDER")
    return parser.parse_args()


if __name__ == "__main__":
    main()

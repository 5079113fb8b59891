#!/usr/bin/env python3
"""Optimizer steps of the published Python Mixture-of-Recursions code on random tokens, in the form of torch_step.py.

    PEERS/published/bin/python bench/peers/published_step.py --repo CODE --size 576,8,9,3,1536,16384 --batch 4,512
    PEERS/published/bin/python bench/peers/published_step.py --repo CODE --size 64,8,4,2,96,256 --batch 2,64 --dense

CODE is a checkout of github.com/raymin0223/mixture_of_recursions as of July 2025; nothing in it is changed. --size:
width, unrolled layers, heads, key/value heads, FFN width, vocabulary (tied embedding). --batch: sequences, length. The
model is what that code builds from its own settings of the expert-choice run with three recursions (linear router,
sigmoid, alpha 0.1, auxiliary loss 0.001, middle cycle, keys and values of each recursion, capacities 1, 2/3, 1/3), or of
the dense run, with these exceptions: the size, f32, scaled-dot-product attention, and the wrapper of a recursion gets
back the shared projections of attention, which it replaces by new ones (issue 17 there; its fix 82c97f2 does the same).
The step is that of its trainer, which keeps the graph after the backward pass, with fused AdamW. Steps and checks are
those of rounds.py; also, each weight has to be there as often as sharing says. Prints JSON. With --case it computes the
steps of a reference case instead (crates/lathe/tests/golden/train_expert_nr3) and says how far its losses are from the
stored ones, which Lathe is held to as well.
"""

import argparse
import contextlib
import json
import resource
import statistics
import sys
import tempfile
from pathlib import Path

import torch
import transformers
from omegaconf import OmegaConf
from safetensors.torch import load_file

from rounds import rounds

RECURSIONS = 3
SETTINGS = {False: "*360m_rec3_*_mor_expert_linear_*.yaml", True: "*360m_vanilla_*.yaml"}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    sys.path.insert(0, str(options.repo))
    if options.case:
        return follow(options)
    settings, model = built(options)
    parameters = checked_parameters(model, options)
    sequences, length = options.batch
    ids = torch.randint(0, options.size[5], (sequences, length))
    step = stepper(settings, model.train(), 1e-3)
    tokens = sequences * length
    for seconds, losses in rounds(lambda: step(ids), options.steps, options.ask):
        print(json.dumps({
            "bench": "published", "model": "dense" if options.dense else "mor3", "torch": torch.__version__,
            "transformers": transformers.__version__, "threads": options.threads, "parameters": parameters,
            "tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / statistics.median(seconds),
            "losses": losses, "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }), flush=True)


def built(options):
    """The settings and the model, made by the published functions in the order of its pretrain.py."""
    folder = options.repo / "conf/pretrain"
    found = sorted(folder.glob(SETTINGS[options.dense]))
    if len(found) != 1:
        sys.exit(f"{folder}: expected one {SETTINGS[options.dense]}, found {len(found)}; give the code of July 2025")
    from model.sharing_strategy import SHARING_STRATEGY
    from model.util import load_model_from_config
    from util.config import preprocess_config

    width, layers, heads, kv_heads, ffn, vocab = options.size
    shape = transformers.LlamaConfig(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv_heads,
        intermediate_size=ffn, vocab_size=vocab, rms_norm_eps=1e-5, tie_word_embeddings=True,
        max_position_embeddings=options.batch[1],
    )
    with tempfile.TemporaryDirectory() as made:
        shape.save_pretrained(made)
        settings = OmegaConf.merge(OmegaConf.load(found[0]), {
            "model_name_or_path": made, "attn_implementation": "sdpa", "precision": "fp32", "max_length": options.batch[1],
        })
        # It tells what it does on the standard output, which is for the JSON.
        with contextlib.redirect_stdout(sys.stderr):
            settings = preprocess_config(settings)
            model = load_model_from_config(settings)
    if not options.dense:
        model, _ = SHARING_STRATEGY[settings.model](settings, model)
        shared = [layer.self_attn for layer in model.model.layers]
        model.transform_layer_to_mor_expert(settings)
        for layer in model.model.layers:
            for block in getattr(layer, "block", []):
                for name in PROJECTIONS:
                    setattr(block.self_attn, name, getattr(shared[block.self_attn.layer_idx], name))
    return settings, model


def checked_parameters(model, options):
    """The number of weights, each counted once, if it is that of the shape."""
    width, layers, heads, kv_heads, ffn, vocab = options.size
    kept = layers if options.dense else 2 + (layers - 2) // RECURSIONS
    routers = 0 if options.dense else RECURSIONS * width
    layer = 2 * width * width + 2 * width * (width // heads) * kv_heads + 3 * width * ffn + 2 * width
    expected = vocab * width + kept * layer + width + routers
    found = sum(weight.numel() for weight in model.parameters())
    if found != expected:
        sys.exit(f"the model has {found} parameters where its shape says {expected}: is every weight shared that should be?")
    return found


def stepper(settings, model, rate):
    """One optimizer step as the published trainer does it, without its logs: the loss before the update."""
    weights = list(model.parameters())
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    betas = (settings.adam_beta1, settings.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)

    def step(ids):
        out = model(input_ids=ids, labels=ids)
        loss = out.loss
        if settings.mor.enable:
            loss = loss + settings.mor.expert.coeff * out.sampling_loss
        loss.backward(retain_graph=settings.mor.enable)
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def follow(options):
    case = json.loads(options.case.with_suffix(".json").read_text())
    tensors = load_file(options.case.with_suffix(".safetensors"))
    options.dense = case["kind"] == "vanilla"
    sizes = ("hidden_size", "layers", "heads", "kv_heads", "intermediate_size", "vocab_size")
    options.size, options.batch = [case[name] for name in sizes], [case["batch"], case["seq_len"]]
    settings, model = built(options)
    checked_parameters(model, options)
    weights = {name: weight.data for name, weight in model.named_parameters()}
    stored = {name.removeprefix("param."): value for name, value in tensors.items() if name.startswith("param.")}
    if weights.keys() != stored.keys():
        sys.exit(f"{options.case}: these weights are not in both: {sorted(weights.keys() ^ stored.keys())}")
    for name, value in stored.items():
        weights[name].copy_(value)
    step = stepper(settings, model.train(), case["train"]["lr"])
    errors = [abs(step(ids) / loss.item() - 1) for ids, loss in zip(tensors["train.input_ids"], tensors["train.loss"])]
    print(f"{len(errors)} losses, the largest relative error {max(errors):.1e}")
    if not max(errors) < 1e-3:
        sys.exit("the tolerance is 1e-3")


def arguments():
    def numbers(count):
        def read(text):
            parts = [int(part) for part in text.split(",")]
            if len(parts) != count or min(parts) < 1:
                raise argparse.ArgumentTypeError(f"expected {count} numbers with commas between them")
            return parts

        return read

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repo", type=Path, required=True)
    parser.add_argument("--size", type=numbers(6), default=[576, 8, 9, 3, 1536, 16384])
    parser.add_argument("--batch", type=numbers(2), default=[4, 512])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dense", action="store_true", help="its dense model in place of the recursive one")
    parser.add_argument("--ask", action="store_true", help="a round for each line of the standard input")
    parser.add_argument("--case", type=Path, help="a training case of the reference, without its ending")
    options = parser.parse_args()
    options.repo = options.repo.resolve()
    return options


if __name__ == "__main__":
    main()

"""Checks adapter folders that Lathe wrote against PEFT.

    python3 -m venv venv && venv/bin/pip install torch transformers peft
    lathe export runs/base --format hf --out base
    lathe export runs/lora --format peft --out adapter
    venv/bin/python bench/reference/peft_adapters.py base adapter --lathe target/release/lathe

PEFT loads the adapter over the base that transformers loads, and computes logits, gradients of the adapter's tensors and merged
matrices of random ids in f32. They are written beside a copy of the folder as `lathe verify` takes them, which then says how far
Lathe is from them. The end code is that of `lathe verify`: 0 where logits agree within 1e-4.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


def recorded(base: Path, adapter: Path, seed: int) -> tuple[dict, dict]:
    """Tensors and numbers of a case of `lathe verify`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32).eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 24))
    tensors = {"input_ids": ids}
    with torch.no_grad():
        tensors["base_logits"] = model(ids).logits.contiguous()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    adapted = PeftModel.from_pretrained(model, adapter, is_trainable=True).eval()
    out = adapted(ids, labels=ids)
    out.loss.backward()
    tensors["logits"] = out.logits.detach().contiguous()
    for name, parameter in adapted.named_parameters():
        if parameter.grad is not None:
            key = name.replace(".default", "")
            # The vector of magnitudes is a module whose only tensor PEFT stores under the module's name.
            key = key.removesuffix(".weight") if "magnitude" in key else key
            tensors["grad." + key] = parameter.grad.contiguous()
    merged = adapted.merge_and_unload()
    with torch.no_grad():
        tensors["merged_logits"] = merged(ids).logits.contiguous()
    for name, value in merged.state_dict().items():
        if not torch.equal(value, before[name]):
            tensors["merged." + name] = value.contiguous()
    return tensors, {"loss": float(out.loss.detach())}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path, help="Hugging Face folder")
    parser.add_argument("adapter", type=Path, help="adapter folder")
    parser.add_argument("--lathe", default="lathe", help="the program")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        case = Path(place) / options.adapter.name
        shutil.copytree(options.adapter, case)
        tensors, settings = recorded(options.base, options.adapter, options.seed)
        save_file(tensors, case / "refs.safetensors")
        (case / "refs.json").write_text(json.dumps(settings))
        config = json.loads((case / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = str(options.base.resolve())
        (case / "adapter_config.json").write_text(json.dumps(config))
        changed = (tensors["logits"] - tensors["base_logits"]).abs().max().item()
        print(f"the adapter moves logits by up to {changed:.3g}; {len(tensors)} tensors recorded")
        return subprocess.run([options.lathe, "verify", str(case)]).returncode


if __name__ == "__main__":
    sys.exit(main())

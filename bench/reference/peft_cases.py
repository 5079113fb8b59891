"""Makes adapter folders of every kind that Lathe reads, with what PEFT computes of them.

    venv/bin/python bench/reference/peft_cases.py cases
    lathe verify cases

Small models with random weights (Llama with a tied head, Qwen2 with biases, Phi-3 with fused matrices, Mixtral and GPT-OSS with
experts), adapters with random numbers. The environment is that of peft_adapters.py.
"""

import json
import sys
from pathlib import Path

import peft
import torch
import transformers
from peft_adapters import recorded
from safetensors.torch import load_file, save_file

SIZES = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 2, "max_position_embeddings": 64}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
EXPERTS = {"intermediate_size": 16, "num_local_experts": 4, "num_experts_per_tok": 2}
TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
BASES = {
    "llama": ("Llama", {"intermediate_size": 40, "num_attention_heads": 3, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"intermediate_size": 40, "tie_word_embeddings": False, **HEADS}),
    "phi3": ("Phi3", {"intermediate_size": 40, **HEADS, **TOKENS}),
    "mixtral": ("Mixtral", {"sliding_window": None, **HEADS, **EXPERTS}),
    "gptoss": ("GptOss", {"head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}, **HEADS, **EXPERTS}),
}
SOME = ["q_proj", "v_proj", "down_proj"]
LORA = {"r": 3, "lora_alpha": 5}
BANKS = ["mlp.experts.down_proj", "mlp.experts.gate_up_proj"]
CASES = [
    ("llama", "dora_rs", "Lora", {**LORA, "target_modules": "all-linear", "use_dora": True, "use_rslora": True}),
    ("llama", "regex", "Lora", {**LORA, "target_modules": r".*layers\.1\.(self_attn|mlp)\.(q|o|up)_proj"}),
    ("qwen2", "bias_all", "Lora", {**LORA, "target_modules": ["q_proj"], "bias": "all"}),
    ("qwen2", "bias_some", "Lora", {**LORA, "target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
    ("qwen2", "saved", "Lora", {**LORA, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head", "norm"]}),
    ("qwen2", "ia3", "IA3", {"target_modules": SOME, "feedforward_modules": ["down_proj"]}),
    ("qwen2", "oft", "OFT", {"oft_block_size": 4, "target_modules": ["q_proj", "o_proj"]}),
    ("qwen2", "oft_exact", "OFT", {"oft_block_size": 8, "target_modules": ["q_proj"], "use_cayley_neumann": False}),
    ("qwen2", "loha", "LoHa", {"r": 3, "alpha": 5, "target_modules": SOME, "rank_pattern": {"q_proj": 2}}),
    ("qwen2", "lokr", "LoKr", {"r": 1, "alpha": 5, "target_modules": SOME, "decompose_both": True}),
    ("qwen2", "hira", "Hira", {"r": 3, "target_modules": SOME}),
    ("qwen2", "miss", "Miss", {"r": 5, "target_modules": ["q_proj", "up_proj"]}),
    ("qwen2", "mini", "Miss", {"r": 4, "mini_r": 4, "init_weights": "mini", "target_modules": ["q_proj", "up_proj"]}),
    ("qwen2", "vera", "Vera", {"r": 5, "target_modules": SOME}),
    ("qwen2", "fourier", "FourierFT", {"n_frequency": 30, "target_modules": SOME, "scaling": 20.0}),
    ("qwen2", "wave", "WaveFT", {"n_frequency": 30, "target_modules": SOME, "scaling": 5.0}),
    ("phi3", "fused", "Lora", {**LORA, "target_modules": ["qkv_proj", "gate_up_proj"]}),
    ("mixtral", "experts", "Lora", {**LORA, "target_modules": ["q_proj"], "target_parameters": BANKS}),
    ("mixtral", "router", "Lora", {**LORA, "target_modules": ["q_proj"], "target_parameters": [BANKS[0], "mlp.gate.weight"]}),
    ("gptoss", "experts", "Lora", {**LORA, "target_modules": ["q_proj"], "target_parameters": BANKS}),
]


def base_model(folder: Path, name: str) -> None:
    kind, settings = BASES[name]
    config = getattr(transformers, kind + "Config")(**SIZES, **settings)
    torch.manual_seed(1)
    model = getattr(transformers, kind + "ForCausalLM")(config).float()
    for value in model.parameters():
        torch.nn.init.normal_(value, mean=0.0 if value.ndim > 1 else 1.0, std=0.1)
    model.save_pretrained(folder)


def case(folder: Path, base: Path, kind: str, settings: dict) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32)
    model = peft.get_peft_model(model, getattr(peft, kind + "Config")(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(7)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn_like(value) * 0.15)
    model.save_pretrained(folder)
    tensors, numbers = recorded(base, folder, seed=3)
    stored = set(load_file(folder / "adapter_model.safetensors"))
    tensors = {name: value for name, value in tensors.items() if not name.startswith("grad.") or name[5:] in stored}
    save_file(tensors, folder / "refs.safetensors")
    (folder / "refs.json").write_text(json.dumps(numbers))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"../{base.name}"
    (folder / "adapter_config.json").write_text(json.dumps(config))


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    for name in BASES:
        base_model(out / name, name)
    for base, name, kind, settings in CASES:
        case(out / f"{base}-{name}", out / base, kind, settings)
    print(f"{len(CASES)} folders of adapters in {out}")


if __name__ == "__main__":
    main()

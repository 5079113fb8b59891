"""Small random Llama folders with the logits that transformers computes for them: the fixtures of crates/convert/tests.

    python3 small_models.py OUT      (needs torch, transformers, tokenizers)
"""
import json
import pathlib
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CASES = {
    "tied": dict(tie_word_embeddings=True, num_key_value_heads=4),
    "untied_gqa": dict(tie_word_embeddings=False, num_key_value_heads=2, rope_theta=100000.0),
    "sharded_wide_heads": dict(tie_word_embeddings=True, num_key_value_heads=1, head_dim=12, rms_norm_eps=1e-6),
    "bf16": dict(tie_word_embeddings=False, num_key_value_heads=1),
}


def tokenizer():
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(specials + alphabet + ["th", "the"])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(specials)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=specials[1], eos_token=specials[2])


def main(out):
    for seed, (name, changes) in enumerate(CASES.items()):
        torch.manual_seed(seed)
        config = LlamaConfig(**(dict(
            vocab_size=262, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, initializer_range=0.3, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        ) | changes))
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "norm" in key:
                    value.uniform_(0.5, 1.5)
        folder = out / name
        if name == "bf16":
            model = model.to(torch.bfloat16)
        model.save_pretrained(folder, max_shard_size="12KB" if name.startswith("sharded") else "1GB")
        tokenizer().save_pretrained(folder)
        ids = torch.randint(0, config.vocab_size, (1, 16))
        with torch.no_grad():
            logits = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits[0]
        record = {"ids": ids[0].tolist(), "logits": [[round(x, 6) for x in row[::13].tolist()] for row in logits]}
        (folder / "expected.json").write_text(json.dumps(record, separators=(",", ":")))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))

"""GGUF files that `lathe export` writes, held against logits that Hugging Face's library computed of the same weights.

    python3 gguf_files.py LATHE FOLDER...      (needs numpy, gguf, safetensors)

Each FOLDER holds config.json, weights and refs.safetensors with `input_ids` and `logits`. It is copied, given a small
byte-level tokenizer, imported, exported in f32, q8_0 and q4_0, and read back by `gguf_logits.Model`, which shares no code
with Lathe. Prints the largest difference from the reference, relative to the largest logit; a model that GGUF files do
not hold is named with the reason. Exits with 1 where f32 differs by more than 1e-4.
"""
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from gguf_logits import Model
from safetensors.numpy import load_file


def tokenizer(vocab):
    # The letters that stand for bytes; models of tests have fewer rows than there are bytes.
    letters = [chr(c) for c in (*range(33, 127), *range(161, 173), *range(174, 256))][: vocab - 1]
    words = {"<|endoftext|>": 0, **{letter: 1 + i for i, letter in enumerate(letters)}}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "pre_tokenizer": bytes_, "decoder": bytes_,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": words, "merges": []},
    }


def checked(lathe, folder, place):
    work = place / "theirs"
    shutil.copytree(folder, work)
    vocab = json.loads((work / "config.json").read_text())["vocab_size"]
    (work / "tokenizer.json").write_text(json.dumps(tokenizer(vocab)))
    run = lambda *words: subprocess.run([lathe, *map(str, words)], capture_output=True, text=True)
    made = run("import", work, "--out", place / "ours")
    if made.returncode != 0:
        return made.stderr.strip().splitlines()[-1], None
    refs = load_file(folder / "refs.safetensors")
    ids = np.asarray(refs["input_ids"]).reshape(-1, np.asarray(refs["input_ids"]).shape[-1])[0].tolist()
    expected = np.asarray(refs["logits"], np.float64).reshape(-1, vocab)[: len(ids)]
    told, exact = [], None
    for dtype in ("f32", "q8_0", "q4_0"):
        file = place / f"{dtype}.gguf"
        made = run("export", place / "ours", "--out", file, "--dtype", dtype)
        if made.returncode != 0:
            told.append(f"{dtype}: {made.stderr.strip().splitlines()[-1]}")
            if dtype == "f32":
                break
            continue
        apart = np.abs(Model(file).logits(ids) - expected).max() / np.abs(expected).max()
        exact = apart if dtype == "f32" else exact
        told.append(f"{dtype} {apart:.1e}")
    return ", ".join(told), exact


def main():
    failed = False
    for folder in map(Path, sys.argv[2:]):
        with tempfile.TemporaryDirectory() as place:
            told, exact = checked(sys.argv[1], folder, Path(place))
        failed |= exact is not None and exact > 1e-4
        print(f"{folder.name}: {told}")
    sys.exit(failed)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Write one model as several GGUF files, so that llama.cpp runs the same weights in each number format.

    make_gguf.py OUT_FOLDER --from MODEL.gguf
    make_gguf.py OUT_FOLDER --random 576,8,9,3,1536,16384
    make_gguf.py OUT_FOLDER --random 512,8,8,8,256,4096 --experts olmoe,32,4
    make_gguf.py OUT_FOLDER --random 512,8,8,2,1280,16384 --experts mixtral,8,2

The first form rounds the weights of a GGUF file (dequantised first where they are quantised); the second makes random
weights of a tied Llama: width, layers, heads, key/value heads, FFN width, vocabulary. --experts: of an untied OLMoE or
Mixtral with so many experts, of which a row takes so many, the FFN width being that of one. Norms and routers stay f32,
as everywhere; such a file has a vocabulary of bytes, so that Lathe opens it too. Files: OUT_FOLDER/f32.gguf, f16.gguf, bf16.gguf, q8_0.gguf, q4_0.gguf.
"""

import argparse
from pathlib import Path

import gguf
import numpy

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--from", dest="source", type=Path)
    given.add_argument("--random", type=shape)
    parser.add_argument("--experts", type=experts, help="with --random: olmoe or mixtral, experts, experts of a row")
    parser.add_argument("--types", default="f32,f16,bf16,q8_0")
    options = parser.parse_args()
    wanted = options.types.split(",")
    unknown = [name for name in wanted if name not in TYPES]
    if unknown:
        parser.error(f"--types {','.join(unknown)}: expected some of {', '.join(TYPES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(options.source) if options.source else None
    if options.experts and reader:
        parser.error("--experts goes with --random")
    weights = read(reader) if reader else random_weights(options.random, options.experts)
    architecture = "olmoe" if options.experts and options.experts[0] == "olmoe" else "llama"
    for name in wanted:
        path = options.out / f"{name}.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        if reader:
            copy_metadata(reader, writer)
        else:
            describe(options.random, options.experts, writer)
        for tensor, values in weights:
            exact = values.ndim == 1 or "ffn_gate_inp" in tensor
            kind = TYPES["f32"] if exact else TYPES[name]
            writer.add_tensor(tensor, gguf.quants.quantize(values, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        print(f"{path}: {path.stat().st_size} bytes")


def shape(text):
    sizes = [int(part) for part in text.split(",")]
    if len(sizes) != 6 or min(sizes) < 1:
        raise argparse.ArgumentTypeError("expected six numbers: width,layers,heads,kv_heads,ffn,vocab")
    return sizes


def experts(text):
    kind, *counts = text.split(",")
    if kind not in ("olmoe", "mixtral") or len(counts) != 2:
        raise argparse.ArgumentTypeError("expected olmoe or mixtral, then two numbers: experts, experts of a row")
    count, used = (int(part) for part in counts)
    if not 1 <= used <= count:
        raise argparse.ArgumentTypeError("expected at least one expert of a row, and no more than there are")
    return kind, count, used


def read(reader):
    """Names and f32 values; a GGUF shape lists the fastest axis first, its data here are row-major."""
    weights = []
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
        weights.append((tensor.name, values.reshape([int(n) for n in reversed(tensor.shape)])))
    return weights


def copy_metadata(reader, writer):
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        kind, *inner = field.types
        writer.add_key_value(key, field.contents(), kind, inner[0] if inner else None)


def random_weights(sizes, experts):
    width, layers, heads, kv_heads, ffn, vocab = sizes
    head = width // heads
    dice = numpy.random.default_rng(1)

    def matrix(*shape):
        return dice.standard_normal(shape, dtype=numpy.float32) * numpy.float32(0.02)

    ones = numpy.ones(width, dtype=numpy.float32)
    weights = [("token_embd.weight", matrix(vocab, width)), ("output_norm.weight", ones)]
    if experts:
        weights.append(("output.weight", matrix(vocab, width)))
    for layer in range(layers):
        matrices = {
            "attn_q": (heads * head, width), "attn_k": (kv_heads * head, width), "attn_v": (kv_heads * head, width),
            "attn_output": (width, heads * head), "ffn_gate": (ffn, width), "ffn_up": (ffn, width),
            "ffn_down": (width, ffn),
        }
        norms = {"attn_norm": ones, "ffn_norm": ones}
        if experts:
            kind, count, _ = experts
            matrices |= {"ffn_gate_inp": (count, width)}
            for name, size in [(name, matrices.pop(name)) for name in ("ffn_gate", "ffn_up", "ffn_down")]:
                matrices[f"{name}_exps"] = (count, *size)
            if kind == "olmoe":
                norms |= {"attn_q_norm": ones[: heads * head], "attn_k_norm": ones[: kv_heads * head]}
        weights += [(f"blk.{layer}.{name}.weight", values) for name, values in norms.items()]
        weights += [(f"blk.{layer}.{name}.weight", matrix(*size)) for name, size in matrices.items()]
    return weights


def describe(sizes, experts, writer):
    width, layers, heads, kv_heads, ffn, vocab = sizes
    writer.add_context_length(2048)
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(width // heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)
    if experts:
        writer.add_expert_count(experts[1])
        writer.add_expert_used_count(experts[2])
        return describe_bytes(vocab, writer)
    # llama.cpp loads no model without a vocabulary; nothing here looks at the words.
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(vocab)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * vocab)


def describe_bytes(vocab, writer):
    """A vocabulary of bytes in GPT-2's letters, one merge, and words that nobody looks at."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    letters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list([*(letters[byte] for byte in range(256)), "he", *(f"<{i}>" for i in range(257, vocab))])
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * 257 + [int(gguf.TokenType.USER_DEFINED)] * (vocab - 257))
    writer.add_token_merges(["h e"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)


if __name__ == "__main__":
    main()

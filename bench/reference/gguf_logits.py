"""Logits of a Llama GGUF file by a second implementation, in numpy and double precision over the dequantised weights, and
their distance from ours.

    python3 gguf_logits.py FILE.gguf IDS [OURS]      (needs numpy, gguf)

IDS are token ids with commas between; OURS is a file of f32 logits, row after row, as the example `logits` of
crates/convert writes it. Rotary pairs are neighbours here, as the file stores them.
"""
import sys

import numpy as np
from gguf import GGUFReader, dequantize


def rms_norm(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotate(x, theta):
    rows, _, width = x.shape
    angle = np.arange(rows)[:, None] * theta ** (-np.arange(0, width, 2) / width)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out


def logits(path, ids):
    reader = GGUFReader(path)
    field = lambda key: reader.get_field("llama." + key).contents()
    tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    heads, kv_heads = field("attention.head_count"), field("attention.head_count_kv")
    eps, theta = field("attention.layer_norm_rms_epsilon"), field("rope.freq_base")
    x = tensors["token_embd.weight"][ids]
    rows = len(ids)
    mask = np.triu(np.full((rows, rows), -np.inf), 1)
    for i in range(field("block_count")):
        w = lambda name: tensors[f"blk.{i}.{name}.weight"]
        h = rms_norm(x, w("attn_norm"), eps)
        q, k, v = ((h @ w(n).T).reshape(rows, c, -1) for n, c in
                   (("attn_q", heads), ("attn_k", kv_heads), ("attn_v", kv_heads)))
        q, k = rotate(q, theta), np.repeat(rotate(k, theta), heads // kv_heads, 1)
        scores = np.einsum("thk,shk->hts", q, k) / np.sqrt(q.shape[-1]) + mask
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        scores /= scores.sum(-1, keepdims=True)
        y = np.einsum("hts,shk->thk", scores, np.repeat(v, heads // kv_heads, 1))
        x = x + y.reshape(rows, -1) @ w("attn_output").T
        h = rms_norm(x, w("ffn_norm"), eps)
        gate = h @ w("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w("ffn_up").T)) @ w("ffn_down").T
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    return rms_norm(x, tensors["output_norm.weight"], eps) @ head.T


def main():
    ids = [int(i) for i in sys.argv[2].split(",")]
    found = logits(sys.argv[1], ids)
    print("most likely next:", np.argsort(-found[-1])[:5].tolist(), "largest logit", round(float(found[-1].max()), 4))
    if len(sys.argv) > 3:
        ours = np.fromfile(sys.argv[3], "<f4").reshape(found.shape)
        print(f"largest difference {np.abs(ours - found).max():.3e} over {found.size} logits, "
              f"largest magnitude {np.abs(found).max():.3f}")


if __name__ == "__main__":
    main()

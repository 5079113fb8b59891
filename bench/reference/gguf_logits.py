"""Logits of a GGUF file of the architectures llama (with experts, too), qwen2, qwen3, granite, olmo2, phi3, gemma, olmoe,
qwen2moe and qwen3moe by a second implementation, in numpy and double precision over the dequantised weights, and their
distance from ours. What each architecture computes is taken from llama.cpp's graphs, not from the program's own table.

    python3 gguf_logits.py FILE.gguf IDS [OURS]      (needs numpy, gguf)

IDS are token ids with commas between; OURS is a file of f32 logits, row after row, as the example `logits` of
crates/convert writes it. Rotary pairs are neighbours in files of llama and granite, and halves in others.
"""
import sys

import numpy as np
from gguf import GGUFReader, dequantize


def rms_norm(x, gain, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def rotate(x, theta, factor, turned, halves):
    rows = len(x)
    angle = np.arange(rows)[:, None] / factor * theta ** (-np.arange(0, turned, 2) / turned)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first = slice(0, turned // 2) if halves else slice(0, turned, 2)
    second = slice(turned // 2, turned) if halves else slice(1, turned, 2)
    out, a, b = x.copy(), x[..., first], x[..., second]
    out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
    return out


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        self.arch = reader.get_field("general.architecture").contents()
        self.reader = reader
        self.tensors = {t.name: dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}

    def field(self, key, default=None):
        found = self.reader.get_field(f"{self.arch}.{key}")
        return default if found is None else found.contents()

    def mlp(self, h, w):
        if self.arch == "phi3":
            gate, up = np.split(h @ w("ffn_up.weight").T, 2, -1)
            return (silu(gate) * up) @ w("ffn_down.weight").T
        act = gelu if self.arch == "gemma" else silu
        return (act(h @ w("ffn_gate.weight").T) * (h @ w("ffn_up.weight").T)) @ w("ffn_down.weight").T

    def experts(self, h, w):
        scores = softmax(h @ w("ffn_gate_inp.weight").T)
        out = np.zeros_like(h)
        for row, of_row in enumerate(scores):
            chosen = np.argsort(-of_row, kind="stable")[: self.field("expert_used_count")]
            weights = of_row[chosen]
            if self.arch in ("llama", "qwen3moe"):
                weights = weights / weights.sum()
            for expert, weight in zip(chosen, weights):
                gate, up, down = (w(f"ffn_{part}_exps.weight")[expert] for part in ("gate", "up", "down"))
                out[row] += weight * (down @ (silu(gate @ h[row]) * (up @ h[row])))
        if self.arch == "qwen2moe":
            shared = silu(h @ w("ffn_gate_shexp.weight").T) * (h @ w("ffn_up_shexp.weight").T)
            share = 1 / (1 + np.exp(-h @ w("ffn_gate_inp_shexp.weight").reshape(-1)))
            out += share[:, None] * (shared @ w("ffn_down_shexp.weight").T)
        return out

    def attention(self, h, w, has):
        heads = self.field("attention.head_count")
        kv_heads = self.field("attention.head_count_kv", heads)
        eps, rows = self.field("attention.layer_norm_rms_epsilon"), len(h)
        if self.arch == "phi3":
            width = len(w("attn_qkv.weight")) // (heads + 2 * kv_heads)
            q, k, v = np.split(h @ w("attn_qkv.weight").T, [heads * width, (heads + kv_heads) * width], -1)
        else:
            q, k, v = (h @ w(f"attn_{n}.weight").T + (w(f"attn_{n}.bias") if has(f"attn_{n}.bias") else 0) for n in "qkv")
        if self.arch in ("olmo2", "olmoe"):
            q, k = rms_norm(q, w("attn_q_norm.weight"), eps), rms_norm(k, w("attn_k_norm.weight"), eps)
        q, k, v = (x.reshape(rows, c, -1) for x, c in ((q, heads), (k, kv_heads), (v, kv_heads)))
        if self.arch in ("qwen3", "qwen3moe"):
            q, k = rms_norm(q, w("attn_q_norm.weight"), eps), rms_norm(k, w("attn_k_norm.weight"), eps)
        turned = self.field("rope.dimension_count", q.shape[-1])
        theta, factor = self.field("rope.freq_base", 1e4), self.field("rope.scaling.factor", 1.0)
        turn = lambda x: rotate(x, theta, factor, turned, self.arch not in ("llama", "granite"))
        q, k = turn(q), np.repeat(turn(k), heads // kv_heads, 1)
        scale = self.field("attention.scale", 1 / np.sqrt(q.shape[-1]))
        scores = np.einsum("thk,shk->hts", q, k) * scale + np.triu(np.full((rows, rows), -np.inf), 1)
        y = np.einsum("hts,shk->thk", softmax(scores), np.repeat(v, heads // kv_heads, 1))
        return y.reshape(rows, -1) @ w("attn_output.weight").T

    def logits(self, ids):
        eps, x = self.field("attention.layer_norm_rms_epsilon"), self.tensors["token_embd.weight"][ids]
        x = x * self.field("embedding_scale", np.sqrt(x.shape[-1]) if self.arch == "gemma" else 1.0)
        residual = self.field("residual_scale", 1.0)
        for i in range(self.field("block_count")):
            w = lambda name: self.tensors[f"blk.{i}.{name}"]
            has = lambda name: f"blk.{i}.{name}" in self.tensors
            mlp = self.experts if has("ffn_gate_inp.weight") else self.mlp
            if self.arch == "olmo2":
                x = x + rms_norm(self.attention(x, w, has), w("post_attention_norm.weight"), eps)
                x = x + rms_norm(mlp(x, w), w("post_ffw_norm.weight"), eps)
                continue
            x = x + residual * self.attention(rms_norm(x, w("attn_norm.weight"), eps), w, has)
            x = x + residual * mlp(rms_norm(x, w("ffn_norm.weight"), eps), w)
        head = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return rms_norm(x, self.tensors["output_norm.weight"], eps) @ head.T / self.field("logit_scale", 1.0)


def main():
    ids = [int(i) for i in sys.argv[2].split(",")]
    found = Model(sys.argv[1]).logits(ids)
    print("most likely next:", np.argsort(-found[-1])[:5].tolist(), "largest logit", round(float(found[-1].max()), 4))
    if len(sys.argv) > 3:
        ours = np.fromfile(sys.argv[3], "<f4").reshape(found.shape)
        print(f"largest difference {np.abs(ours - found).max():.3e} over {found.size} logits, "
              f"largest magnitude {np.abs(found).max():.3f}")


if __name__ == "__main__":
    main()

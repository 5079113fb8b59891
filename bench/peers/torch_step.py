#!/usr/bin/env python3
"""Optimizer steps of a dense Llama in PyTorch on random tokens: the peer of `lathe bench train`.

    torch_step.py --size 576,8,9,3,1536,16384 --batch 4,512 --steps 5
    torch_step.py --size 128,6,2,1,384,4096 --batch 8,256 --compile

--size: width, layers, heads, key/value heads, FFN width, vocabulary (tied embedding). --batch: sequences, length. The
step is forward, cross-entropy over all positions, backward, clipping of the gradient's norm to 1 and AdamW, in f32 with
PyTorch's own fast paths: scaled-dot-product attention with grouped queries, fused AdamW, torch.compile if asked for.
Steps and checks are those of rounds.py; --ask: a round for each line of the standard input. Prints JSON.
"""

import argparse
import json
import resource

import torch
from torch import nn
from torch.nn import functional

from rounds import rounds


class Attention(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.head = width // heads
        self.heads, self.kv_heads = heads, kv_heads
        self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * self.head, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        rows = self.qkv(x).view(batch, length, -1, self.head).transpose(1, 2)
        q, k, v = rows.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        return self.out(seen.transpose(1, 2).reshape(batch, length, width))


def rotated(x, cos, sin):
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads, ffn):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.RMSNorm(width, eps=1e-5), nn.RMSNorm(width, eps=1e-5)
        self.attention = Attention(width, heads, kv_heads)
        self.gate_up = nn.Linear(width, 2 * ffn, bias=False)
        self.down = nn.Linear(ffn, width, bias=False)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(functional.silu(gate) * up)


class Llama(nn.Module):
    def __init__(self, width, layers, heads, kv_heads, ffn, vocab, length):
        super().__init__()
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Block(width, heads, kv_heads, ffn) for _ in range(layers))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        frequency = 10000.0 ** (-torch.arange(0, width // heads, 2) / (width // heads))
        angle = torch.outer(torch.arange(length), frequency)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for weight in self.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        logits = functional.linear(self.norm(x), self.embedding.weight)
        return functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    sequences, length = options.batch
    model = Llama(*options.size, length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of = torch.compile(model) if options.compile else model
    tokens = torch.randint(0, options.size[5], (sequences, length + 1))
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step():
        optimizer.zero_grad()
        loss = loss_of(ids, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    for seconds, losses in rounds(step, options.steps, options.ask):
        print(json.dumps({
            "bench": "torch", "torch": torch.__version__, "compile": options.compile, "threads": options.threads,
            "parameters": sum(p.numel() for p in model.parameters()), "tokens": sequences * length, "seconds": seconds,
            "losses": losses, "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }), flush=True)


def arguments():
    def numbers(count):
        def read(text):
            parts = [int(part) for part in text.split(",")]
            if len(parts) != count or min(parts) < 1:
                raise argparse.ArgumentTypeError(f"expected {count} numbers with commas between them")
            return parts

        return read

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=numbers(6), default=[576, 8, 9, 3, 1536, 16384])
    parser.add_argument("--batch", type=numbers(2), default=[4, 512])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--ask", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

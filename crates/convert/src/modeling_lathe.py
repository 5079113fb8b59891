"""The models of Lathe in plain PyTorch, for inference with transformers.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids = tokenizer("Once upon a time", return_tensors="pt")
    print(tokenizer.decode(model.generate(**ids, max_new_tokens=40)[0]))

Tokens decide for themselves how often they go through the shared layers, by the causal rule that
the model was trained or calibrated with: `model(**ids).depths` says how often each token did, and
`max_depth` limits it. `config.model` is the recipe of the model, in the words of Lathe's documents.

Rows of all sequences are packed, `[T, width]`, without padding. `T` counts rows, `H` heads of
queries, `G` heads of keys and values, `D` columns of a head (of values `V`), `E` experts.
"""

import collections
import inspect
import functools
import math
import re
from dataclasses import dataclass, field
from typing import Optional

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput


# What transformers calls keys and values of earlier calls: another name in recent versions.
_GENERATION = inspect.signature(GenerationMixin.prepare_inputs_for_generation)
CACHE = "cache" if "cache" in _GENERATION.parameters else "past_key_values"


class LatheConfig(PretrainedConfig):
    """What config.json says: the recipe, the causal rule, and what routers learned beside weights."""

    model_type = "lathe"

    def __init__(
        self, model=None, routing=None, router_state=None, parameters=None, router_seed=0, **others
    ):
        self.model = model or {}
        self.routing = routing
        self.router_state = router_state or {}
        self.parameters = parameters or {}
        self.router_seed = router_seed
        others["tie_word_embeddings"] = False  # The model reads the embedding where it is the head.
        super().__init__(**others)


# The tensors of adapters that are formulas over a matrix.
FORMULAS = {
    "loha": ["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"],
    "lokr": ["lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b"],
    "ia3": ["ia3_l"],
    "miss": ["miss_block"],
    "mos": ["own_a", "own_b", "pool_a", "pool_b"],
    "vera": ["vera_lambda_b", "vera_lambda_d"],
    "wara": [f"{factor}.{band}" for band in range(4) for factor in ("down", "up")],
}


def of_pattern(table, weight, usual):
    """What a table of patterns, in which a star stands for anything, says of a weight."""
    for pattern, value in table.items():
        if re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), weight):
            return value
    return usual


def haar(matrix):
    """The inverse of one Haar step along the rows: pairs out of sums and differences."""
    low, high = matrix.chunk(2)
    pairs = torch.stack([low + high, low - high], 1) / math.sqrt(2.0)
    return pairs.reshape(matrix.shape)


def taken_by_entropy(p, relax):
    """All probabilities of rows whose Tsallis entropy is above a threshold; of others the largest,
    while their sum is at most a share, and some at least.
    """
    q, wide = relax["entropy_index"], p.double()
    if q == 1:
        entropy = -(wide * wide.clamp_min(1e-300).log()).sum(1, keepdim=True)
    else:
        entropy = (1 - (wide**q).sum(1, keepdim=True)) / (q - 1)
    sorted_p, order = wide.sort(dim=1, descending=True, stable=True)
    kept = sorted_p.cumsum(1) <= relax["top_p"]
    kept[:, : relax["top_k"]] = True
    kept = torch.zeros_like(kept).scatter(1, order, kept)
    return p * (kept | (entropy > relax["threshold"]))


def haar_bands(leaves, relax, shape):
    """What pairs in the basis of a Haar step add to a matrix of this shape."""
    ranks, double = relax["ranks"], torch.float64
    bands = len(ranks)
    rows, columns = (shape[0] // 2, shape[1] // 2) if bands == 4 else tuple(shape)
    found = []
    for band in range(bands):
        if ranks[band]:
            found.append(leaves[f"up.{band}"] @ leaves[f"down.{band}"])
        else:
            found.append(torch.zeros(rows, columns, dtype=double))
    if bands == 4:
        found = [torch.cat([torch.cat(found[:2], 1), torch.cat(found[2:], 1)])]
    return relax["alpha"] / sum(ranks) * haar(haar(found[0]).T).T


@dataclass
class LatheOutput(ModelOutput):
    """Logits, how deep each token went, and the keys and values of the next call."""

    loss: Optional[torch.Tensor] = None
    logits: Optional[torch.Tensor] = None
    past_key_values: Optional["LatheCache"] = None
    cache: Optional["LatheCache"] = None
    depths: Optional[torch.Tensor] = None
    hidden_states: Optional[tuple] = None


class LatheCache:
    """Keys and values of each unrolled layer, of the rows that came there, in order of position."""

    is_compileable = False

    def __init__(self, sequences):
        self.lengths = [0] * sequences
        self.columns = 0
        self.layers = {}

    def get_seq_length(self, layer=0):
        return self.columns

    def append(self, layer, rows, key, value):
        """Takes in keys `[T, G, D]` and values `[T, G, V]` of `rows` at a layer."""
        kept = self.layers.get(layer)
        new = (rows.sequence, rows.position, key, value)
        self.layers[layer] = new if kept is None else tuple(map(_stack, zip(kept, new)))

    def of_sequence(self, layer, sequence):
        """Positions, keys and values of one sequence."""
        kept = self.layers.get(layer)
        if kept is None:
            return None
        own = (kept[0] == sequence).nonzero().squeeze(1)
        return kept[1][own], kept[2][own], kept[3][own]

    def reorder_cache(self, order):
        """Sequence `i` becomes a copy of sequence `order[i]`, for beam search."""
        self.lengths = [self.lengths[int(i)] for i in order]
        for layer, kept in self.layers.items():
            parts = []
            for new, old in enumerate(order):
                own = (kept[0] == int(old)).nonzero().squeeze(1)
                parts.append((torch.full_like(kept[0][own], new), *(x[own] for x in kept[1:])))
            self.layers[layer] = tuple(map(_stack, zip(*parts)))


def _stack(parts):
    return torch.cat(list(parts))


@dataclass
class Rows:
    """Sequence, position and token of each row, `[T]`, and what rows carry from layer to layer."""

    sequence: torch.Tensor
    position: torch.Tensor
    token: torch.Tensor
    carried: dict = field(default_factory=dict)

    def only(self, which):
        carried = {name: value[which] for name, value in self.carried.items()}
        return Rows(self.sequence[which], self.position[which], self.token[which], carried)

    def take_back(self, which, some):
        """What some of the rows carry on."""
        for name, value in self.carried.items():
            self.carried[name] = value.index_copy(0, which, some.carried[name])


@dataclass
class Use:
    """A layer of the unrolled model: whose weights it has, and how often they were used before."""

    layer: int
    stored: int
    recursion: int
    first: int


class Dice:
    """Random numbers by address, in the arithmetic of 64 bits (SplitMix64; Steele et al., 2014)."""

    INIT, ROUTER, EXPERTS = 1, 2, 6
    MASK = (1 << 64) - 1

    def __init__(self, seed, step, place, part, purpose=ROUTER):
        self.state = self.mix(seed + 0x9E3779B97F4A7C15)
        for word in (purpose, step, place, part):
            self.absorb(word)

    def mix(self, z):
        z &= self.MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & self.MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & self.MASK
        return z ^ (z >> 31)

    def absorb(self, word):
        other = self.mix(word + 0x2545F4914F6CDD1D)
        self.state = self.mix(((self.state * 0x9E3779B97F4A7C15) & self.MASK) ^ other)

    def uniform(self):
        """In [0, 1)."""
        self.state = (self.state + 0x9E3779B97F4A7C15) & self.MASK
        return (self.mix(self.state) >> 11) / (1 << 53)


@functools.lru_cache(maxsize=None)
def projection(name, seed, rows, columns, width):
    """Numbers of an address, row by row, uniform within the root of 6 / width."""
    place, bound = 0xCBF29CE484222325, math.sqrt(6.0 / width)
    for byte in name.encode():
        place = ((place ^ byte) * 0x100000001B3) & Dice.MASK
    found = []
    for row in range(rows):
        dice = Dice(seed, 0, place, row, purpose=Dice.INIT)
        found.append([bound * (2.0 * dice.uniform() - 1.0) for _ in range(columns)])
    return torch.tensor(found, dtype=torch.float64)


def projected(leaves, relax, shape):
    """What two vectors and two matrices of dice add to a matrix of this shape."""
    (n, d), rank, seed = shape, relax["rank"], relax["projection_seed"]
    a = projection("vera_A", seed, rank, d, d).to(leaves["vera_lambda_d"].device)
    b = projection("vera_B", seed, n, rank, rank).to(a.device)
    outer, inner = leaves["vera_lambda_b"][0], relax["initial"] * leaves["vera_lambda_d"][0]
    return outer[:, None] * ((b * inner) @ a)


@functools.lru_cache(maxsize=None)
def selection(name, seed, part, pool, count):
    """The first numbers of a pool that is shuffled by the dice of an address."""
    place, found = 0xCBF29CE484222325, list(range(pool))
    for byte in name.encode():
        place = ((place ^ byte) * 0x100000001B3) & Dice.MASK
    dice = Dice(seed, 0, place, part, purpose=Dice.INIT)
    for at in range(count):
        other = at + int(dice.uniform() * (pool - at))
        found[at], found[other] = found[other], found[at]
    return found[:count]


def sharded(leaves, relax, part, use):
    """What a pair of low rank adds whose rows are put together of shards."""
    sides = []
    for side in ("b", "a"):
        own, pool = leaves.get(f"own_{side}"), leaves.get(f"pool_{side}")
        shards = [] if own is None else [own]
        if pool is not None:
            count = (relax["rank"] - relax["own_rank"]) * relax["shards"]
            name = f"mos.{part}.{side}"
            taken = selection(name, relax["selection_seed"], use, pool.shape[0], count)
            shards.append(pool[taken])
        sides.append(torch.cat(shards).reshape(relax["rank"], -1))
    return relax["alpha"] / relax["rank"] * sides[0].T @ sides[1]


def unrolled(model):
    """The layers of a recipe before, in, and behind its recursions (a list of blocks)."""
    layers, n, sharing = model["layers"], model["recursions"], model["sharing"]
    if sharing == "none":
        return [Use(layer, layer, 0, layer) for layer in range(layers)], [], []
    ends = 1 if sharing.startswith("middle") else 0
    block = (layers - 2 * ends) // n
    middle = []
    for m in range(layers - 2 * ends):
        cycle = sharing.endswith("cycle")
        i, r = (m % block, m // block) if cycle else (m // n, m % n)
        middle.append(Use(m + ends, i + ends, r, (i if cycle else i * n) + ends))
    before = [Use(0, 0, 0, 0)] if ends else []
    after = [Use(layers - 1, block + 1, 0, layers - 1)] if ends else []
    if not cycle:
        return before + middle, [], after
    return before, [middle[r * block : (r + 1) * block] for r in range(n)], after


class LatheForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = LatheConfig
    main_input_name = "input_ids"
    _supports_cache_class = False

    def __init__(self, config):
        super().__init__(config)
        self.recipe = config.model
        self.before, self.blocks, self.after = unrolled(config.model)
        for name, shape in config.parameters.items():
            self._plant(name, shape)
        self.post_init()

    def _plant(self, name, shape):
        """A parameter whose name is that of the file: each stretch between dots is a module."""
        *path, leaf = name.split(".")
        at = self
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.register_parameter(leaf, nn.Parameter(torch.empty(shape), requires_grad=False))

    def _init_weights(self, module):
        pass

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def weight(self, name):
        return self.get_parameter(name)

    def has(self, name):
        return name in self.config.parameters

    def setting(self, group, name, otherwise):
        """A setting of a group that recipes may leave out."""
        return self.recipe.get(group, {}).get(name, otherwise)

    # One pass.

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        past_key_values=None,
        cache=None,
        labels=None,
        use_cache=None,
        max_depth=None,
        output_hidden_states=None,
        return_dict=None,
        **_,
    ):
        """Logits `[B, L, V]` of tokens `[B, L]` and, with `labels`, the mean cross-entropy.

        `attention_mask` is 0 where a column is padding, in this call (`L` columns) or in all calls
        so far; positions count the other columns. `max_depth` limits recursions."""
        batch, length = input_ids.shape
        cache = cache if cache is not None else past_key_values
        if cache is None:
            cache = LatheCache(batch)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        real = attention_mask[:, -length:].bool()
        sequence, column = real.nonzero(as_tuple=True)
        start = torch.tensor(cache.lengths, device=input_ids.device)
        position = (real.long().cumsum(1) - 1 + start[:, None])[sequence, column]
        rows = Rows(sequence, position, input_ids[sequence, column])
        cache.lengths = [n + int(more) for n, more in zip(cache.lengths, real.sum(1))]
        cache.columns += length

        x, depth = self.rows_forward(rows, cache, max_depth)
        logits = self.scored(x)
        full = logits.new_zeros(batch, length, logits.shape[1])
        full[sequence, column] = logits
        depths = torch.zeros_like(input_ids)
        depths[sequence, column] = depth
        hidden = None
        if output_hidden_states:
            last = x.new_zeros(batch, length, x.shape[1])
            last[sequence, column] = x
            hidden = (last,)
        loss = None
        if labels is not None:
            counted = labels[:, 1:].where(real[:, 1:], torch.full_like(labels[:, 1:], -100))
            loss = F.cross_entropy(full[:, :-1].flatten(0, 1).float(), counted.flatten())
        kept = {} if use_cache is False else {CACHE: cache}
        output = LatheOutput(loss, full, depths=depths, hidden_states=hidden, **kept)
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(self, input_ids, attention_mask=None, **given):
        """What the cache has not seen yet."""
        cache = given.get("cache")
        cache = cache if cache is not None else given.get("past_key_values")
        if cache is not None:
            input_ids = input_ids[:, cache.get_seq_length() :]
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, CACHE: cache}
        return inputs | {name: given[name] for name in ("use_cache", "max_depth") if name in given}

    def get_input_embeddings(self):
        return None

    def rows_forward(self, rows, cache, max_depth):
        """Normed rows `[T, width]` ahead of the head, and the recursions that each row took."""
        x = F.embedding(rows.token, self.weight("embed"))
        x = x * self.setting("multipliers", "embedding", 1.0)
        rows.carried = self.nothing_yet(x)
        x = self.layers_forward(self.before, x, rows, cache)
        depth = torch.full_like(rows.position, self.recipe["recursions"])
        if self.blocks:
            x, depth = self.recur(x, rows, cache, max_depth)
        rows.carried = self.nothing_yet(x)
        x = self.layers_forward(self.after, x, rows, cache)
        return self.stream_norm("norm", "norm_bias", x), depth

    def nothing_yet(self, x):
        """What rows carry ahead of the first layer, and of the first behind the recursions."""
        mlp = self.recipe["mlp"]
        width = mlp.get("router", {}).get("memory", 0)
        return {"memory": x.new_zeros(len(x), width)} if width > 0 else {}

    def scored(self, x):
        """Logits of normed rows."""
        z = x @ self.weight("embed" if self.recipe["tie_embeddings"] else "head").T
        z = z / self.setting("multipliers", "logits_divisor", 1.0)
        z = z + self.weight("head_bias")[0] if self.has("head_bias") else z
        cap = self.setting("multipliers", "logit_cap", 0.0)
        return cap * torch.tanh(z / cap) if cap > 0 else z

    # Who goes on, and how results join the stream.

    def recur(self, x, rows, cache, max_depth):
        kind = self.recipe["router"]["kind"]
        most = min(len(self.blocks), max_depth or len(self.blocks))
        if kind == "fixed":
            for block in self.blocks[:most]:
                x = self.layers_forward(block, x, rows, cache)
            return x, torch.full_like(rows.position, most)
        if kind == "token_choice":
            return self.recur_by_token(x, rows, cache, most)
        decide = {"expert_choice": self.expert_choice, "random": self.random_choice}[kind]
        depth = torch.zeros_like(rows.position)
        going = torch.arange(len(rows.position), device=x.device)
        for r in range(most):
            on, gate, gating = decide(r, x[going], rows.only(going))
            going, gate = going[on], gate[on]
            if len(going) == 0:
                break
            some = rows.only(going)
            y = self.layers_forward(self.blocks[r], x[going], some, cache)
            rows.take_back(going, some)
            if gating == "weighted":
                y = x[going] + gate * y
            elif gating == "blend":
                y = x[going] + gate * (y - x[going])
            elif gating == "additive":
                y = x[going] + y
            x = x.index_copy(0, going, y)
            depth[going] = r + 1
        return x, depth

    def scores(self, name, x):
        """The scoring network of a router on rows divided by its temperature."""
        router = self.recipe["router"]
        x = x / router["temperature"]
        if router["network"] == "linear":
            return x @ self.weight(f"{name}.score").T
        return F.gelu(x @ self.weight(f"{name}.up").T) @ self.weight(f"{name}.down").T

    def expert_choice(self, r, x, rows):
        """A row goes on if its logit reaches the threshold of the causal rule."""
        router, rule = self.recipe["router"], self.config.routing
        z = self.scores(f"router.{r}", x)
        asked = self.scores(f"auxiliary_router.{r}", x) if rule["auxiliary"] else z
        threshold = rule["thresholds"][r]
        on = torch.ones_like(asked, dtype=torch.bool) if threshold is None else asked >= threshold
        alpha = router["alpha"]
        gate = {
            "sigmoid": lambda: alpha * torch.sigmoid(z),
            "tanh": lambda: alpha * torch.tanh(z),
            "none": lambda: z,
        }[router["function"]]()
        if router["gate_release_steps"] > 0:
            released = self.config.router_state.get("released", [1.0])[0]
            gate = 1.0 - released + released * gate
        return on[:, 0], gate, router["gating"]

    def random_choice(self, r, x, rows):
        """The control: a die of position and recursion decides."""
        router, n = self.recipe["router"], len(self.blocks)
        capacities = router["capacities"] or [(n - i) / n for i in range(n)]
        limit = 1.0 - capacities[r] / (capacities[r - 1] if r > 0 else 1.0)
        seed = self.config.router_seed
        dice = [Dice(seed, Dice.MASK, p, r).uniform() for p in rows.position.tolist()]
        u = torch.tensor(dice, dtype=torch.float64, device=x.device).float()
        return u.double() >= limit, (router["alpha"] * u[:, None]).to(x.dtype), "weighted"

    def recur_by_token(self, x, rows, cache, most):
        """Each row takes the depth with the largest score, which also weighs the result."""
        router, state = self.recipe["router"], self.config.router_state
        z, alpha = self.scores("router", x), router["alpha"]
        soft = router["function"] == "softmax"
        scores = alpha * (torch.softmax(z, 1) if soft else torch.sigmoid(z))
        biased = scores
        if router["balance"] == "loss_free" and "bias" in state:
            biased = scores + torch.tensor(state["bias"], device=x.device)
        target = biased.argmax(1)
        if router["balance_warmup_steps"] > 0 and state.get("warming", [0.0])[0] == 1.0:
            target = torch.full_like(target, len(self.blocks) - 1)
        target = target.clamp(max=most - 1)
        gate = scores.gather(1, target[:, None])
        every = router["gate_on"] == "every_pass"
        going, y, joined = torch.arange(len(target), device=x.device), x, x
        for r in range(most):
            on = (target[going] >= r).nonzero().squeeze(1)
            going, y = going[on], y[on]
            if len(going) == 0:
                break
            some = rows.only(going)
            y = self.layers_forward(self.blocks[r], y, some, cache)
            rows.take_back(going, some)
            if every:
                y = gate[going] * y
            done = target[going] == r
            ends = y[done] if every else gate[going[done]] * y[done]
            joined = joined.index_add(0, going[done], ends)
        return joined, target + 1

    # Layers.

    def layers_forward(self, uses, x, rows, cache):
        self.tokens = rows.token
        for use in uses:
            x = self.attention(use, x, rows, cache)
            h = self.normed(use, "ffn_norm", x)
            x = self.join(use, "ffn_after_norm", x, self.mlp(use, h, rows))
            x = self.encoded(use, x)
        return x

    def rms(self, name, x, eps=None):
        wide, eps = x.float(), eps or self.recipe["norm_eps"]
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        offset = 1.0 if self.setting("norms", "plus_one", False) else 0.0
        return (wide * (offset + self.weight(name)[0].float())).to(x.dtype)

    def of_use(self, use):
        return 0 if self.recipe["share_norms"] else use.recursion

    def normed(self, use, part, x):
        """The norm of a layer, where the model has one at that place."""
        name = f"layers.{use.stored}.{part}.{self.of_use(use)}"
        bias = f"layers.{use.stored}.{part}_bias.{self.of_use(use)}"
        return self.stream_norm(name, bias, x) if self.has(name) else x

    def stream_norm(self, name, bias, x):
        """RMSNorm, or LayerNorm with its bias."""
        if self.setting("norms", "kind", "rms") != "layer":
            return self.rms(name, x)
        centred = (x.float() - x.float().mean(-1, keepdim=True)).to(x.dtype)
        return self.rms(name, centred) + self.weight(bias)[0]

    def join(self, use, part, x, y):
        return x + self.setting("multipliers", "residual", 1.0) * self.normed(use, part, y)

    def biased(self, use, part, y):
        name = f"layers.{use.stored}.{part}_bias"
        return y + self.weight(name)[0] if self.has(name) else y

    def linear(self, use, part, h):
        """A matrix of a layer with what its use adds to the rows of some tokens or of all."""
        y = self.adapted_product(use, part, h)
        first = self.recipe["relax"].get("from_token", 0)
        if first == 0:
            return y
        stored = h @ self.weight(f"layers.{use.stored}.{part}").T
        return torch.where((self.tokens >= first)[:, None], y, stored)

    def adapted_product(self, use, part, h):
        w = self.weight(f"layers.{use.stored}.{part}")
        relax = self.recipe["relax"]
        name = f"relax.{use.stored}.{part}.{use.recursion}"
        if relax["kind"] in FORMULAS:
            uses = self.adapted_uses(relax, part) if relax["kind"] == "mos" else []
            return h @ self.adapted(name, relax, part, w, uses).T
        scale = self.scale(f"layers.{use.stored}.{part}", relax)
        if self.has(f"{name}.score"):
            return h @ w.T + self.mixed_adapters(name, relax, scale, h)
        if not self.has(f"{name}.up"):
            return h @ w.T
        down, up = self.weight(f"{name}.down"), self.weight(f"{name}.up")
        y = h @ w.T + scale * (h @ down.T) @ up.T
        if relax["kind"] == "dora":
            merged = w.double() + scale * up.double() @ down.double()
            ratio = w.double().norm(dim=1) / merged.norm(dim=1)
            y = y * (self.weight(f"{name}.length")[0] * ratio.to(y.dtype))
        return y

    def scale(self, weight, relax):
        """The factor of what an adapter of low rank adds to a weight."""
        if "rank_stabilized" not in relax:
            return 1.0
        rank = of_pattern(relax["rank_pattern"], weight, relax["rank"])
        alpha = of_pattern(relax["alpha_pattern"], weight, relax["alpha"])
        return alpha / (rank**0.5 if relax["rank_stabilized"] else rank)

    def adapted_uses(self, relax, part):
        """The uses that have an adapter of a matrix, as the beginnings of their tensors' names."""
        uses = self.before + sum(self.blocks, []) + self.after
        often = collections.Counter(use.stored for use in uses)
        found = []
        for use in uses:
            reached = relax["layers"] == "all" or often[use.stored] > 1
            skipped = relax["skip_first"] and use.recursion == 0
            no_keys = self.recipe["kv"] == "shared" and use.recursion > 0
            if reached and not skipped and not (no_keys and part.startswith("key_value")):
                found.append((use.stored, use.recursion))
        return [f"relax.{stored}.{part}.{recursion}" for stored, recursion in sorted(found)]

    def adapted(self, name, relax, part, w, uses):
        """The matrix that a formula makes of a stored one, in double precision."""
        if uses and name not in uses:
            return w
        leaves, use_number = {}, uses.index(name) if uses else 0
        for leaf in FORMULAS[relax["kind"]]:
            # Tensors that several uses share stand with the first.
            for start in [name] + uses[:1]:
                if leaf not in leaves and self.has(f"{start}.{leaf}"):
                    leaves[leaf] = self.weight(f"{start}.{leaf}").double()
        if not leaves:
            return w
        m, kind = w.double(), relax["kind"]
        if kind == "ia3":
            vector = leaves["ia3_l"]
            return (m * (vector if part in relax["inputs"] else vector.T)).to(w.dtype)
        if kind == "miss":
            block = leaves["miss_block"]
            inputs = torch.arange(m.shape[1]) % block.shape[0]
            return (m + block[inputs].T).to(w.dtype)
        if kind == "mos":
            return (m + sharded(leaves, relax, part, use_number)).to(w.dtype)
        if kind == "vera":
            return (m + projected(leaves, relax, m.shape)).to(w.dtype)
        if kind == "wara":
            return (m + haar_bands(leaves, relax, m.shape)).to(w.dtype)
        scale = relax["alpha"] / relax["rank"]
        if kind == "loha":
            added = leaves["hada_w1_a"] @ leaves["hada_w1_b"]
            added = added * (leaves["hada_w2_a"] @ leaves["hada_w2_b"])
        else:
            whole = "lokr_w2" in leaves
            second = leaves["lokr_w2"] if whole else leaves["lokr_w2_a"] @ leaves["lokr_w2_b"]
            added = torch.kron(leaves["lokr_w1"], second)
        return (m + scale * added).to(w.dtype)

    def mixed_adapters(self, name, relax, scale, h):
        """Of several low-rank adapters those with the highest scores, weighted by their softmax."""
        z = h @ self.weight(f"{name}.score").T
        if relax["kind"] == "dynmole":
            weight = taken_by_entropy(torch.softmax(z, 1), relax)
        else:
            top, chosen = z.topk(relax["top_k"], dim=1)
            weight = torch.zeros_like(z).scatter(1, chosen, torch.softmax(top, 1))
        y = 0.0
        for k in range(z.shape[1]):
            low = h @ self.weight(f"{name}.down.{k}").T
            y = y + weight[:, k : k + 1] * scale * (low @ self.weight(f"{name}.up.{k}").T)
        return y

    def encoded(self, use, x):
        """The factors of a recursion, behind its last layer or behind every shared layer."""
        if self.recipe["relax"]["kind"] != "encoding":
            return x
        middle = self.recipe["sharing"].startswith("middle")
        shared = not middle or 0 < use.layer < self.recipe["layers"] - 1
        if self.blocks:
            shared = any(block[-1].layer == use.layer for block in self.blocks)
        return x * self.weight(f"encoding.{use.recursion}")[0] if shared else x

    # Attention.

    def attention(self, use, x, rows, cache):
        h = self.normed(use, "attention_norm", x)
        latent = self.setting("attention", "kv_rank", 0)
        source = h
        if self.has(f"layers.{use.stored}.query_latent"):
            name = f"layers.{use.stored}.query_latent_norm.{self.of_use(use)}"
            source = self.rms(name, self.linear(use, "query_latent", h), 1e-6)
        query = self.biased(use, "query", self.linear(use, "query", source))
        query = self.placed(use, "query_norm", query, self.recipe["heads"], rows)
        mode = self.recipe["kv"]
        if latent and not (mode == "shared" and use.recursion > 0):
            cache.append(use.layer, rows, *self.out_of_latent(use, h, rows, latent))
        elif not (mode == "shared" and use.recursion > 0):
            both = self.biased(use, "key_value", self.linear(use, "key_value", h))
            key, value = both.chunk(2, dim=1)
            key = self.placed(use, "key_norm", key, self.recipe["kv_heads"], rows)
            value = self.clipped(value).unflatten(1, (self.recipe["kv_heads"], -1))
            cache.append(use.layer, rows, key, value)
        width = self.setting("attention", "value_dim", 0) or self.recipe["head_dim"]
        y = query.new_zeros(*query.shape[:2], width)
        for sequence in rows.sequence.unique().tolist():
            own = (rows.sequence == sequence).nonzero().squeeze(1)
            seen = self.seen(use, sequence, cache, mode)
            y[own] = self.attend(use, query[own], rows.position[own], *seen)
        y = self.biased(use, "output", self.linear(use, "output", y.flatten(1)))
        return self.join(use, "attention_after_norm", x, y)

    def out_of_latent(self, use, h, rows, m):
        """Keys `[shared | own]` and values of all heads out of a latent of `m` columns."""
        both = self.linear(use, "key_value_latent", h)
        shared = self.turned(use, both[:, None, m:], rows.position)
        of_norm = 0 if self.recipe["kv"] == "shared" else self.of_use(use)
        name = f"layers.{use.stored}.key_value_latent_norm.{of_norm}"
        c = self.setting("attention", "latent_scale", 1.0) * self.rms(name, both[:, :m], 1e-6)
        expanded = self.linear(use, "key_value", c).unflatten(1, (self.recipe["heads"], -1))
        own = self.recipe["head_dim"] - shared.shape[2]
        keys = [shared.expand(-1, self.recipe["heads"], -1), expanded[..., :own]]
        return torch.cat(keys, dim=2), expanded[..., own:]

    def seen(self, use, sequence, cache, mode):
        """Positions, keys and values that a use may see of a sequence."""
        if mode == "recursion_wise" or use.recursion == 0:
            return cache.of_sequence(use.layer, sequence)
        position, key, value = cache.of_sequence(use.first, sequence)
        if mode == "shared":
            return position, key, value
        # Rows that came here are seen with what they brought, the others with what they had first.
        at, own_key, own_value = cache.of_sequence(use.layer, sequence)
        place = torch.searchsorted(position, at)
        return position, key.index_copy(0, place, own_key), value.index_copy(0, place, own_value)

    def placed(self, use, norm, x, heads, rows):
        """Queries or keys `[T, heads, D]`, normed, clipped and turned."""
        how = self.setting("attention", "query_key_norm", "none")
        first = norm == "key_norm" and self.recipe["kv"] == "shared"
        name = f"layers.{use.stored}.{norm}.{0 if first else self.of_use(use)}"
        if how == "width":
            x = self.rms(name, x)
        x = x.unflatten(1, (heads, self.recipe["head_dim"]))
        if how == "head":
            x = self.rms(name, x)
        x = self.turned(use, self.clipped(x), rows.position)
        return self.rms(name, x) if how == "head_turned" else x

    def clipped(self, x):
        limit = self.setting("attention", "clip", 0.0)
        return x.clamp(-limit, limit) if limit > 0 else x

    def window(self, use):
        """Keys that a row sees in this layer; 0 for all."""
        layers = self.setting("attention", "window_layers", "all")
        here = layers == "all" or use.stored in layers
        return self.setting("attention", "window", 0) if here else 0

    def turned(self, use, x, position):
        """Rotary positions: entries `i` of the two halves of the columns that turn are a pair."""
        layers = self.setting("rotary", "layers", "all")
        if layers != "all" and use.stored not in layers:
            return x
        rates, factor = self.rates(use)
        half = len(rates)
        angle = position[:, None].double() * torch.tensor(rates, device=x.device).double()
        cos, sin = ((factor * f(angle)).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)

    def rates(self, use):
        """Radians that each pair turns from one position to the next, and a factor of what turns."""
        turned = int(self.recipe["head_dim"] * self.setting("rotary", "share", 1.0))
        turned = self.setting("attention", "rope_dim", 0) or turned
        base, local = self.recipe["rope_theta"], self.setting("rotary", "window_theta", 0.0)
        scaling = self.setting("rotary", "scaling", {"kind": "none"})
        if local > 0 and self.window(use) > 0:
            base, scaling = local, {"kind": "none"}
        rates = [base ** (-2.0 * i / turned) for i in range(turned // 2)]
        kind = scaling["kind"]
        if kind == "none":
            return rates, 1.0
        if kind == "linear":
            return [rate / scaling["factor"] for rate in rates], 1.0
        if kind == "llama3":
            return [self.llama3(rate, scaling) for rate in rates], 1.0
        if kind == "dynamic":
            return self.dynamic(scaling, base, turned), 1.0
        if kind == "longrope":
            return self.longrope(rates, scaling)
        return self.yarn(rates, scaling, base, turned)

    def dynamic(self, scaling, base, turned):
        """Rates of the base that is grown for texts of the model's context."""
        factor, original = scaling["factor"], scaling["original_context"]
        length = max(self.recipe["context"], original)
        base *= (factor * length / original - (factor - 1.0)) ** (turned / (turned - 2.0))
        return [base ** (-2.0 * i / turned) for i in range(turned // 2)]

    def longrope(self, rates, scaling):
        """Rates divided by one list or the other, by the model's context."""
        original, long = scaling["original_context"], scaling["long_context"]
        which = "long_factor" if self.recipe["context"] > original else "short_factor"
        factors = scaling[which] or [1.0] * len(rates)
        rates = [rate / factor for rate, factor in zip(rates, factors)]
        if scaling["attention_factor"] > 0:
            return rates, scaling["attention_factor"]
        if long <= original:
            return rates, 1.0
        return rates, math.sqrt(1.0 + math.log(long / original) / math.log(original))

    @staticmethod
    def llama3(rate, scaling):
        turns = scaling["original_context"] * rate / (2.0 * math.pi)
        kept = (turns - scaling["low"]) / (scaling["high"] - scaling["low"])
        kept = min(max(kept, 0.0), 1.0)
        return (1.0 - kept) * rate / scaling["factor"] + kept * rate

    @staticmethod
    def yarn(rates, scaling, base, turned):
        def pair(turns):
            wavelengths = scaling["original_context"] / (turns * 2.0 * math.pi)
            return turned * math.log(wavelengths) / (2.0 * math.log(base))

        low, high = pair(scaling["beta_fast"]), pair(scaling["beta_slow"])
        if scaling["truncate"]:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0.0), min(high, turned - 1.0)
        if low == high:
            high += 0.001
        rescaled = []
        for i, rate in enumerate(rates):
            slow = min(max((i - low) / (high - low), 0.0), 1.0)
            rescaled.append(rate / scaling["factor"] * slow + rate * (1.0 - slow))
        log = 0.1 * math.log(scaling["factor"])
        if scaling["attention_factor"] > 0:
            return rescaled, scaling["attention_factor"]
        if scaling["mscale"] > 0:
            above = scaling["mscale"] * log + 1.0
            return rescaled, above / (scaling["mscale_all_dim"] * log + 1.0)
        return rescaled, log + 1.0

    def attend(self, use, query, asked, position, key, value):
        """Queries `[t, H, D]` at positions `asked` over keys `[S, G, D]` up to these positions."""
        heads, width = self.recipe["heads"], self.recipe["head_dim"]
        repeat = heads // self.recipe["kv_heads"]
        key, value = (x.repeat_interleave(repeat, dim=1).transpose(0, 1) for x in (key, value))
        scale = self.setting("attention", "scale", 0.0) or width**-0.5
        score = (query.transpose(0, 1) @ key.transpose(1, 2) * scale).float()
        cap = self.setting("attention", "soft_cap", 0.0)
        if cap > 0:
            score = cap * torch.tanh(score / cap)
        end = torch.searchsorted(position.contiguous(), asked, right=True)[:, None]
        index = torch.arange(len(position), device=query.device)
        visible = index < end
        window = self.window(use)
        if window > 0:
            visible &= index >= end - window
        score = score.masked_fill(~visible, float("-inf"))
        if self.setting("attention", "sinks", False):
            sink = self.weight(f"layers.{use.stored}.sinks")[0].float()
            score = torch.cat([score, sink[:, None, None].expand(-1, len(asked), 1)], dim=2)
        share = torch.softmax(score, dim=2)[..., : len(position)].to(value.dtype)
        return (share @ value).transpose(0, 1)

    # MLPs.

    def mlp(self, use, h, rows):
        mlp, stored = self.recipe["mlp"], use.stored
        shortcut = mlp.get("shortcut", False)
        if mlp["kind"] == "experts" and self.has_experts(stored):
            if shortcut:
                return self.dense(use, h) + self.experts(use, rows.carried["before"], rows)
            return self.experts(use, h, rows)
        if shortcut:
            rows.carried["before"] = h
        return self.dense(use, h)

    def dense(self, use, h):
        mlp = self.recipe["mlp"]
        y = self.biased(use, "gate_up", self.linear(use, "gate_up", h))
        gate, up = y.chunk(2, dim=1)
        activation = {
            "silu": F.silu,
            "gelu": F.gelu,
            "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
        }[mlp.get("activation", "silu")]
        return self.biased(use, "down", self.linear(use, "down", activation(gate) * up))

    def has_experts(self, stored):
        mlp = self.recipe["mlp"]
        behind = stored - mlp["dense_first"]
        reached = behind >= 0 and (behind + 1) % mlp["every"] == 0
        return reached and stored not in mlp["dense_layers"]

    def computing(self, stored):
        """How many experts of a layer have matrices."""
        mlp = self.recipe["mlp"]
        counts = mlp.get("counts", [])
        return counts[sum(map(self.has_experts, range(stored)))] if counts else mlp["count"]

    def experts(self, use, h, rows):
        """The sum of the experts that each row takes, beside the one that all rows take."""
        mlp, name = self.recipe["mlp"], f"layers.{use.stored}"
        y, mix = torch.zeros_like(h), None
        if mlp.get("shared_mix"):
            mix = torch.softmax(h @ self.weight(f"{name}.router.shared_mix").T, 1)
        if mlp["shared"] > 0:
            y = self.biased(use, "shared_gate_up", self.linear(use, "shared_gate_up", h))
            gate, up = y.chunk(2, dim=1)
            y = self.biased(use, "shared_down", self.linear(use, "shared_down", F.silu(gate) * up))
            if mlp["shared_gate"]:
                y = torch.sigmoid(h @ self.weight(f"{name}.router.shared_gate").T) * y
        count = self.computing(use.stored)
        weight = self.expert_weights(use, h, rows)
        if mix is not None:
            y, weight = mix[:, 1:] * y, mix[:, :1] * weight
        if mlp.get("modulated"):
            scale, shift = self.weight(f"{name}.experts_scale"), self.weight(f"{name}.experts_shift")
            return y + self.dense(use, (weight @ scale) * h + weight @ shift)
        seen = self.linear(use, "experts_latent", h) if mlp.get("latent", 0) > 0 else h
        inner = self.weight(f"{name}.experts_gate_up").unflatten(0, (count, -1))
        outer = self.weight(f"{name}.experts_down").unflatten(0, (count, -1))
        for e in range(count):
            on = (weight[:, e] != 0).nonzero().squeeze(1)
            if len(on) == 0:
                continue
            z = seen[on] @ inner[e].T
            if mlp["biases"]:
                z = z + self.weight(f"{name}.experts_gate_up_bias")[e]
            z = self.gated(mlp, *z.chunk(2, dim=1)) @ outer[e].T
            if mlp["biases"]:
                z = z + self.weight(f"{name}.experts_down_bias")[e]
            y = y.index_add(0, on, weight[on, e : e + 1] * z)
        return self.zero_experts(name, h, weight[:, count:], y)

    def zero_experts(self, name, h, weight, y):
        """Adds what experts without matrices write: the row, nothing, or the row mixed with a
        vector."""
        mlp = self.recipe["mlp"]
        identity = mlp.get("identity_experts", 0)
        first = identity + mlp.get("zero_experts", 0)
        y = y + weight[:, :identity].sum(1, keepdim=True) * h
        for c in range(mlp.get("constant_experts", 0)):
            mix = self.weight(f"{name}.experts_constant_mix")[2 * c : 2 * c + 2]
            a = torch.softmax(h @ mix.T, 1)
            z = a[:, :1] * h + a[:, 1:] * self.weight(f"{name}.experts_constant")[c]
            y = y + weight[:, first + c, None] * z
        return y

    @staticmethod
    def gated(mlp, gate, up):
        limit = mlp["limit"]
        if limit == 0:
            return F.silu(gate) * up
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        return gate * torch.sigmoid(mlp["alpha"] * gate) * (up + 1.0)

    def expert_weights(self, use, h, rows):
        """What each expert's result counts in each row, `[T, E]`; 0 for those not taken."""
        mlp = self.recipe["mlp"]
        router = mlp["router"]
        own = use.recursion if mlp["own_routers"] else None
        if router["kind"] in ("hash", "random"):
            return self.drawn(use, own, h, rows)
        name = f"layers.{use.stored}.router." + ("" if own is None else f"{own}.")
        if router.get("memory", 0) > 0:
            z = self.remembered(name, h, rows) @ self.weight(f"{name}score").T
        elif self.has(f"{name}score"):
            z = h @ self.weight(f"{name}score").T
        else:
            z = F.gelu(h @ self.weight(f"{name}up").T) @ self.weight(f"{name}down").T
        if router["kind"] == "sparse_mixer":
            return self.sparse_mixed(z, router["jitter"])
        if router["kind"] == "top_p":
            return self.likely(torch.softmax(z, 1), router)
        if router["kind"] == "expert_choice":
            return self.reached(use, own, torch.softmax(z, 1), router)
        if router["logit_bias"]:
            z = z + self.weight(f"{name}bias")[0]
        cap = router["soft_cap"]
        if cap > 0:
            z = cap * torch.tanh(z / cap)
        soft = router["function"] == "softmax"
        scores = torch.softmax(z, 1) if soft else torch.sigmoid(z)
        whole = router["normalize"] and router["scale"] == 1.0 and router["least"] == 0.0
        if scores.shape[1] == 1 and whole:
            return torch.ones_like(z)
        chosen = self.top_experts(use, scores, router)
        weight = torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))
        if router["normalize"]:
            weight = weight / (weight.sum(1, keepdim=True) + 1e-20).clamp(min=router["least"])
        return router["scale"] * weight

    def remembered(self, name, h, rows):
        """What the routers know of each row's way, after this layer: a gated recurrent unit."""
        x, old = h @ self.weight(f"{name}project").T, rows.carried["memory"]
        a, b = (
            z @ self.weight(f"routers.cell_{part}").T + self.weight(f"routers.cell_{part}_bias")[0]
            for part, z in (("input", x), ("state", old))
        )
        (a_r, a_z, a_n), (b_r, b_z, b_n) = a.chunk(3, dim=1), b.chunk(3, dim=1)
        keep, new = torch.sigmoid(a_z + b_z), torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n)
        rows.carried["memory"] = (1.0 - keep) * new + keep * old
        return rows.carried["memory"]

    def top_experts(self, use, scores, router):
        state, count = self.config.router_state, scores.shape[1]
        name = f"experts.{use.stored}.bias"
        if router["balance"] in ("loss_free", "budget") and name in state:
            scores = scores + torch.tensor(state[name], device=scores.device)
        groups, top = router["groups"], router["top_groups"]
        if router.get("equal_groups"):
            each = router["top_k"] // groups
            best = scores.unflatten(1, (groups, -1)).topk(each, dim=2).indices
            first = torch.arange(groups, device=best.device) * (count // groups)
            return (best + first[:, None]).flatten(1)
        if top < groups:
            grouped = scores.unflatten(1, (groups, -1))
            best = 2 if router["group_score"] == "best_two" and count // groups > 1 else 1
            open_groups = grouped.topk(best, dim=2).values.sum(2).topk(top, dim=1).indices
            is_open = torch.zeros_like(grouped[..., 0], dtype=torch.bool)
            is_open = is_open.scatter(1, open_groups, True)[..., None].expand_as(grouped)
            scores = grouped.masked_fill(~is_open, float("-inf")).flatten(1)
        return scores.topk(router["top_k"], dim=1).indices

    @staticmethod
    def sparse_mixed(z, jitter):
        """The two experts with the highest logits, each weighted among those near it."""
        weight, left = torch.zeros_like(z), z
        for _ in range(2):
            top, chosen = left.max(1, keepdim=True)
            far = (top - left) / torch.maximum(left.abs(), top) > 2.0 * jitter
            share = torch.softmax(left.masked_fill(far, float("-inf")), 1)
            weight = weight.scatter(1, chosen, share.gather(1, chosen))
            left = left.scatter(1, chosen, float("-inf"))
        return weight

    @staticmethod
    def likely(scores, router):
        """The most likely experts, until their probability exceeds p or there are enough."""
        ordered, order = torch.sort(scores, dim=1, descending=True, stable=True)
        before = F.pad(ordered.double().cumsum(1)[:, :-1], (1, 0))
        taken = before <= router["p"] if router["p"] < 1.0 else before >= 0.0
        taken[:, router["limit"] or scores.shape[1] :] = False
        return torch.zeros_like(scores).scatter(1, order, ordered * taken)

    def reached(self, use, own, scores, router):
        """The experts whose threshold a row reaches; before the first step its best ones."""
        name = f"experts.{use.stored}." + ("" if own is None else f"{own}.") + "thresholds"
        state = self.config.router_state
        if name in state:
            return scores * (scores >= torch.tensor(state[name], device=scores.device))
        count = min(max(1, int(router["capacity"] + 0.5)), scores.shape[1])
        chosen = scores.topk(count, dim=1).indices
        return torch.zeros_like(scores).scatter(1, chosen, scores.gather(1, chosen))

    def drawn(self, use, own, h, rows):
        """Experts drawn by the token, by its position, or by both, without putting back."""
        count, router = self.computing(use.stored), self.recipe["mlp"]["router"]
        weight = h.new_zeros(len(h), count)
        layer, part = 1 + use.stored, 0 if own is None else 1 + own
        for t, (token, position) in enumerate(zip(rows.token.tolist(), rows.position.tolist())):
            if router["kind"] == "random":
                dice = Dice(0, Dice.MASK, position, layer, purpose=Dice.EXPERTS)
                dice.absorb(part)
            else:
                place = token << 32 | (0 if router["of"] == "token" else 1 + position)
                dice = Dice(layer, Dice.MASK, place, part)
            left = list(range(count))
            for _ in range(router["top_k"]):
                at = int(dice.uniform() * len(left))
                left[at], left[-1] = left[-1], left[at]
                weight[t, left.pop()] = 1.0 / router["top_k"]
        return weight

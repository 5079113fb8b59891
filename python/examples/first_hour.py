# %% [markdown]
# # The first hour with Lathe from Python
#
# A tokenizer and packed text come from the command line, everything behind them from here. Run it
# as it is (`python first_hour.py TEXTS FOLDER`), or cell by cell in an editor that knows `# %%`.

# %% Text that becomes a data folder
import pathlib
import subprocess
import sys

import numpy as np

import lathe

texts, place = (pathlib.Path(word) for word in sys.argv[1:3])
steps = int(sys.argv[3]) if len(sys.argv) > 3 else 60
place.mkdir(parents=True, exist_ok=True)
tokenizer, data = place / "tokenizer.json", place / "data"
for words in [
    ["tokenizer", "train", "--input", texts, "--vocab", 300, "--out", tokenizer],
    ["data", "build", "--input", texts, "--tokenizer", tokenizer, "--out", data,
     "--valid-per-mille", 200],
]:
    subprocess.run(["lathe", *map(str, words)], check=True)

# %% A recipe: three recursions of a shared block, of which each token takes as many as its router says
recipe = place / "small.toml"
recipe.write_text(
    f"""
[model]
width = 32
layers = 5
heads = 2
kv_heads = 1
head_dim = 16
ffn = 64
context = 64
recursions = 3
router = {{ kind = "expert_choice" }}
[data]
dir = {str(data)!r}
sequence_length = 32
[train]
batch = 2
micro_batch = 2
[log]
validate_every = {steps}
validate_windows = 4
calibrate_windows = 4
trace_every = {steps}
""",
    encoding="utf-8",
)

# %% Train, and look at every step; leave after a third and go on as if nothing had been
run, length = place / "run", {"train.steps": steps}
for step in lathe.train(recipe, out=run, set=length):
    if step.step == max(steps // 3, 1):
        break
training = lathe.train(recipe, out=run, set=length)
print(f"goes on from step {training.resumed_from}")
for step in training:
    print(f"step {step.step:4}  loss {step.loss:.3f}", end="\r")
print(f"\nnats a token, causal routing: {training.result['causal']['all']['nll']:.3f}")

# %% The log as columns
columns = lathe.read_run(run).columns()
print("loss, first and last:", columns["loss"][[0, -1]].round(3))

# %% Text, with the recursions that each token took
model = lathe.load(run)
for piece in model.stream("the model", max_tokens=20, seed=3):
    print(f"{piece.text}[{piece.depth}]", end="")
print()

# %% What the model thinks of a text, token by token
scores = model.score("the router reads the depth of a token.")
for token, logprob in zip(scores.ids[1:], scores.logprobs):
    print(f"{model.tokenizer.decode([token])!r:12} {logprob:7.2f} nats")

# %% Hidden states: how far one recursion is from as many as the router wants
one, all_ = (model.hidden("the router reads", max_depth=most) for most in (1, None))
print("change of each row:", np.linalg.norm(all_.states - one.states, axis=1).round(2))

# %% Which rows went on, by recursion, in the last step of training
trace = lathe.read_trace(run / f"traces/step-{steps:08}.parquet")
went_on = np.diff(trace.target_starts) > 0
for recursion in range(model.recursions):
    print(f"recursion {recursion}: {went_on[trace.recursion == recursion].mean():.0%} of those asked")

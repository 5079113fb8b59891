"""A small world for the tests: text, a tokenizer, data, a run, and the command line beside them."""

import os
import pathlib
import random
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# The package is asked with as many threads as the command line, for speed alone: bits are the same.
os.environ.setdefault("LATHE_THREADS", "2")

WORDS = (
    "the model token depth router layer weight of and step loss reads writes naïve file word line "
    "data seed opens closes fn let 中文"
).split()


def document(seed: int, sentences: int) -> str:
    dice = random.Random(seed)
    said = (" ".join(dice.choices(WORDS, k=dice.randint(6, 13))) for _ in range(sentences))
    return "".join(text + dice.choice([". ", ". ", ". ", ".\n\n"]) for text in said)


RECIPE = """
[model]
width = 32
layers = 5
heads = 2
kv_heads = 1
head_dim = 16
ffn = 64
context = 64
recursions = 3
router = { kind = "expert_choice" }
[data]
dir = "DATA"
sequence_length = 32
[train]
steps = 6
batch = 2
micro_batch = 2
[schedule]
kind = "trapezoid"
warmup_steps = 2
[checkpoint]
every = 2
[log]
validate_every = 3
validate_windows = 4
calibrate_windows = 4
trace_every = 3
"""


class World:
    """A folder, and the command line in it."""

    def __init__(self, place: pathlib.Path, binary: pathlib.Path) -> None:
        self.place, self.binary = place, binary

    def start(self, *words: object, **more: object) -> subprocess.Popen:
        line = [str(self.binary), *map(str, words)]
        return subprocess.Popen(line, cwd=self.place, **more)

    def lathe(self, *words: object, fails: bool = False) -> subprocess.CompletedProcess:
        line = [str(self.binary), *map(str, words)]
        done = subprocess.run(
            line, cwd=self.place, capture_output=True, text=True, encoding="utf-8", check=False
        )
        assert (done.returncode != 0) == fails, (line, done.stdout, done.stderr)
        return done

    def says(self, *words: object) -> str:
        """What the command line says to what it refuses, without its `error: `."""
        return self.lathe(*words, fails=True).stderr.strip().splitlines()[-1].removeprefix("error: ")


@pytest.fixture(scope="session")
def binary() -> pathlib.Path:
    path = pathlib.Path(os.environ.get("LATHE_BINARY", ROOT / "target/release/lathe"))
    if not path.is_file():
        pytest.fail(
            f"{path} is not there: the tests compare the package with the command line; build it by "
            "`cargo build --release`, or name it by LATHE_BINARY"
        )
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, binary: pathlib.Path) -> World:
    world = World(tmp_path_factory.mktemp("world"), binary)
    text = world.place / "text"
    text.mkdir()
    for seed in range(40):
        (text / f"{seed}.md").write_text(document(seed, 12), encoding="utf-8")
    words = ["--input", "text", "--vocab", "300", "--out", "tokenizer.json"]
    world.lathe("tokenizer", "train", *words)
    words = ["--input", "text", "--tokenizer", "tokenizer.json", "--out", "data"]
    world.lathe("data", "build", *words, "--valid-per-mille", "200")
    recipe = RECIPE.replace("DATA", str(world.place / "data"))
    (world.place / "tiny.toml").write_text(recipe, encoding="utf-8")
    world.lathe("train", "tiny.toml", "--out", "run")
    return world


@pytest.fixture(scope="session")
def model(world: World):
    import lathe

    return lathe.load(world.place / "run")

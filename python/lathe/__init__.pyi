from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy
from numpy.typing import NDArray

_Path = str | PathLike[str]
_Prompt = str | Sequence[int] | NDArray[numpy.integer[Any]]
_Rule = Literal["causal", "training"]

__version__: str

class LatheError(Exception): ...
class LatheValueError(LatheError, ValueError): ...
class LatheFileNotFoundError(LatheError, FileNotFoundError): ...

def load(
    path: _Path,
    *,
    weights: str | None = None,
    adapter: _Path | None = None,
    chat_template: str | None = None,
) -> Model: ...
def train(
    recipe: _Path,
    *,
    out: _Path,
    set: Mapping[str, Any] | None = None,
    resume: bool = True,
    accept_changes: bool = False,
    on_validation: Callable[[int, dict[str, Any]], object] | None = None,
    on_save: Callable[[Path], object] | None = None,
) -> Training: ...
def read_run(path: _Path) -> RunLog: ...
def read_trace(path: _Path) -> RoutingTrace: ...
def set_threads(count: int) -> None: ...

class Model:
    config: dict[str, Any]
    tokenizer: Tokenizer
    path: Path
    step: int
    context: int
    vocab_size: int
    recursions: int
    parameters: int
    def generate(
        self,
        prompt: _Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        max_depth: int | None = None,
        ignore_end: bool = False,
        choice: int = 0,
        json_schema: str | Mapping[str, Any] | bool | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> Generation: ...
    def stream(
        self,
        prompt: _Prompt,
        *,
        max_tokens: int | None = None,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 1,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        stop: str | Sequence[str] = (),
        max_depth: int | None = None,
        ignore_end: bool = False,
        choice: int = 0,
        json_schema: str | Mapping[str, Any] | bool | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
    ) -> Stream: ...
    def score(
        self,
        text_or_ids: _Prompt,
        *,
        max_depth: int | None = None,
        rule: _Rule = "causal",
        seed: int = 0,
    ) -> Scores: ...
    def logits(
        self,
        text_or_ids: _Prompt,
        *,
        max_depth: int | None = None,
        rule: _Rule = "causal",
        seed: int = 0,
    ) -> Logits: ...
    def hidden(
        self,
        text_or_ids: _Prompt,
        *,
        max_depth: int | None = None,
        rule: _Rule = "causal",
        seed: int = 0,
    ) -> Hidden: ...
    def routes(
        self,
        text_or_ids: _Prompt,
        *,
        max_depth: int | None = None,
        rule: _Rule = "causal",
        seed: int = 0,
    ) -> RoutingTrace: ...

class Tokenizer:
    vocab_size: int
    begin_id: int | None
    end_ids: list[int]
    chat_template: str | None
    def __len__(self) -> int: ...
    def encode(self, text: str, *, begin: bool = False) -> list[int]: ...
    def decode(self, ids: Sequence[int] | NDArray[numpy.integer[Any]]) -> str: ...
    def token(self, id: int) -> str | None: ...
    def id(self, token: str) -> int | None: ...
    def chat(self, messages: Sequence[dict[str, str]]) -> list[int]: ...
    def chat_text(
        self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool = True
    ) -> str: ...

class Generation:
    text: str
    ids: list[int]
    depths: list[int]
    logprobs: list[float]
    prompt_ids: list[int]
    prompt_depths: list[int]
    finish: Literal["end", "stop", "length", "cancelled"]
    stopped_by: str | None
    kv_bytes: int

class Piece:
    text: str
    id: int | None
    depth: int | None
    logprob: float | None

class Stream:
    result: Generation | None
    def __iter__(self) -> Iterator[Piece]: ...
    def __next__(self) -> Piece: ...
    def close(self) -> None: ...

class Scores:
    ids: list[int]
    logprobs: NDArray[numpy.float32]
    depths: NDArray[numpy.uint32]
    total: float

class Logits:
    ids: list[int]
    values: NDArray[numpy.float32]
    depths: NDArray[numpy.uint32]

class Hidden:
    ids: list[int]
    states: NDArray[numpy.float32]
    depths: NDArray[numpy.uint32]

class Step:
    step: int
    loss: float
    tokens_per_second: float
    flops_per_second: float
    record: dict[str, Any]

class Training:
    out: Path
    step: int
    steps: int
    resumed_from: int
    ended: bool
    checkpoint: Path | None
    validations: list[tuple[int, dict[str, Any]]]
    result: dict[str, Any] | None
    def __iter__(self) -> Iterator[Step]: ...
    def __next__(self) -> Step: ...
    def __enter__(self) -> Training: ...
    def __exit__(self, *raised: object) -> None: ...
    def stop(self) -> None: ...

class RunLog:
    path: str
    rows: list[dict[str, Any]]
    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    def __len__(self) -> int: ...
    def columns(self) -> dict[str, NDArray[Any]]: ...

class RoutingTrace:
    step: NDArray[numpy.int64]
    sequence: NDArray[numpy.uint64]
    position: NDArray[numpy.uint32]
    token: NDArray[numpy.uint32]
    layer: NDArray[numpy.int32]
    recursion: NDArray[numpy.uint32]
    targets: NDArray[numpy.uint32]
    target_starts: NDArray[numpy.int64]
    weights: NDArray[numpy.float32]
    weight_starts: NDArray[numpy.int64]
    dropped: NDArray[numpy.uint32]
    dropped_starts: NDArray[numpy.int64]
    sites: dict[int, int]
    def __len__(self) -> int: ...

"""Lathe: language models that spend compute per token, trained and run on a CPU.

>>> import lathe
>>> model = lathe.load("runs/first")
>>> print(model.generate("Once upon a time", max_tokens=40))

Remarks that the command line writes to standard error go to the logger "lathe". `LATHE_THREADS` and
`LATHE_CACHE` say what they say to the command line.
"""

import os as _os
import sys as _sys

from . import _lathe
from ._errors import LatheError, LatheFileNotFoundError, LatheValueError
from ._lathe import (
    Generation,
    Hidden,
    Logits,
    Model,
    Piece,
    RoutingTrace,
    Scores,
    Step,
    Stream,
    Tokenizer,
    Training,
    __version__,
    load,
    read_trace,
    train,
)
from ._runs import RunLog, read_run

# The process that renders chat templates has a bound on its memory: it loads the extension alone.
_RENDER = (
    "import importlib.util as u, sys; s = u.spec_from_file_location('_lathe', sys.argv[1]); "
    "m = u.module_from_spec(s); s.loader.exec_module(m); m._render_templates()"
)


def set_threads(count: int) -> None:
    """Computes with so many threads; 0 for one a processor. Results are the same bits with any.

    It counts from the first call that computes on; ValueError after that.
    """
    if not 0 <= count <= 4096:
        raise LatheValueError(f"the number of threads is {count}, expected one from 0 to 4096")
    _lathe._set_threads(count)


def _begin() -> None:
    arguments = ["-I", "-S", "-c", _RENDER, _lathe.__file__]
    _lathe._begin(_sys.executable or "python3", arguments, _os.environ.get("LATHE_CACHE") or None)
    threads = _os.environ.get("LATHE_THREADS", "")
    if threads:
        if not threads.isdecimal():
            raise LatheValueError(
                f"LATHE_THREADS is {threads!r}, expected a whole number; 0 for one a processor"
            )
        set_threads(int(threads))


_begin()

__all__ = [
    "Generation",
    "Hidden",
    "LatheError",
    "LatheFileNotFoundError",
    "LatheValueError",
    "Logits",
    "Model",
    "Piece",
    "RoutingTrace",
    "RunLog",
    "Scores",
    "Step",
    "Stream",
    "Tokenizer",
    "Training",
    "__version__",
    "load",
    "read_run",
    "read_trace",
    "set_threads",
    "train",
]

"""Rounds of timed steps for the peers of `lathe bench train`."""

import math
import sys
import time


def rounds(step, steps, ask):
    """Two steps that do not count, then rounds of `steps`: one, or one for each line of the standard input.

    Yields the seconds of a round's steps and all losses so far. The batch stays the same, so the last loss has to be finite
    and below the first. With `ask` it says `ready` when the first round can begin, and each round has one more step at its
    start that does not count: a program that waits uses no processor but finds its caches empty. So several can be compared
    by turns of seconds on a machine whose speed changes within minutes.
    """
    losses = [step(), step()]
    if ask:
        print("ready", flush=True)
    for _ in sys.stdin if ask else [None]:
        if ask:
            losses.append(step())
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - begin)
        if not all(math.isfinite(loss) for loss in losses) or losses[-1] >= losses[0]:
            sys.exit(f"the loss does not fall: {losses}")
        yield seconds, losses

"""What work costs in calls of functions, Python's and C's: a number that no other work on the machine changes.

A call takes 0.05 to 0.3 us here, so calls stand for time, and their growth for how work grows.
"""

import cProfile


def calls(work):
    """How many functions are called in ``work()``."""
    profile = cProfile.Profile()
    profile.runcall(work)
    return sum(entry.callcount for entry in profile.getstats())


def calls_per_op(work, *histories):
    """The calls of ``work(history)`` per operation of each history; the first use, which loads code, is left out."""
    work(histories[0])
    return [calls(lambda history=history: work(history)) / len(history.graph.ops) for history in histories]

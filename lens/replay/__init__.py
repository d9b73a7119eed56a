"""Replay: running a recorded graph again, all of it or any part, from given values."""

from lens.replay.interpreter import Interpreter as Interpreter

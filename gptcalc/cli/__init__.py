"""The command line: parse -> call -> report, nothing else. One file a command."""

import gc

# Imports and a short answer make many objects and little garbage: looking for it costs a tenth of a cold start.
gc.set_threshold(50_000)

"""Timing of real kernels. `plan` and `sampling` open no torch; `cases`, `stopwatch`, `device` and `run` do."""

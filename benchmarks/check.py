"""What `gptcalc check gpt3-175b` takes beyond importing torch, by witness; all measured in turn, in one run.

python benchmarks/check.py [ROUNDS]
"""

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import the transformers class": [
        sys.executable,
        "-c",
        "import torch; from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel",
    ],
    "check --witness reference": [sys.executable, "-m", "gptcalc", "check", "gpt3-175b", "--witness", "reference"],
    "check, every witness": [sys.executable, "-m", "gptcalc", "check", "gpt3-175b"],
}
GOAL_S = 2


def main() -> None:
    """Print the medians, and the seconds beyond `import torch`."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    samples: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds + 1):
        for name, command in COMMANDS.items():
            start = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
            samples[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(times[1:]) for name, times in samples.items()}
    print(f"goal: the reference under {GOAL_S} s beyond import torch")
    for name, seconds in medians.items():
        print(f"  {name:<32}{seconds:6.2f} s  {seconds - medians['import torch']:+6.2f} s")


if __name__ == "__main__":
    main()

#!/usr/bin/env bash
# Everything that a GPU is wanted for, in one go: the tests marked gpu, agreement with other stopwatches, the headline
# set, and the sweep of widths and rows twice, with how often the second run lies in the first one's interval.
#
#   benchmarks/device.sh FOLDER [SECONDS]      SECONDS for each sweep; profiles and what was printed go to FOLDER
#
# A sweep that was stopped goes on when it is run with the same FOLDER again.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
budget=${2:-200}
mkdir -p "$out"
sweep=('embedding.*' 'layernorm.*' 'rmsnorm.*' 'gpt_embedding.*' --rows "${ROWS:-1k,8k,64k}" --d-model "${WIDTHS:-256:16384:x2}"
    --dtype fp32,bf16 --backend eager,compile --time-budget "$budget")

nvidia-smi > "$out/nvidia-smi.txt" 2>&1
python3 -m pytest -m gpu -q -p no:cacheprovider 2>&1 | tee "$out/pytest.txt" | tail -n 3
python3 benchmarks/bench.py 2>&1 | tee "$out/agreement.txt"
python3 -m gptcalc bench --save "$out/headline.json" 2>&1 | tee "$out/headline.txt" | head -n 40
for run in first second; do
    python3 -m gptcalc bench "${sweep[@]}" --save "$out/$run.json" > "$out/$run.txt" 2> "$out/$run.err"
    tail -n 2 "$out/$run.err"
done
python3 benchmarks/bench.py "$out/first.json" "$out/second.json" 2>&1 | tee "$out/twice.txt"

#!/usr/bin/env bash
# Everything that a GPU is wanted for, in one go, what matters most first: the tests marked gpu; the memory of some fifty
# runs against what is predicted for them; whether the largest batches that are said to fit run; agreement with other stopwatches, the headline set, and the sweep of widths
# and rows twice, with how often the second run lies in the first one's interval.
#
#   benchmarks/device.sh FOLDER [SECONDS [GRID_SECONDS]]
#
# SECONDS for each sweep (default 60), GRID_SECONDS for the grid of memory (default 240), $FITS for the largest batches
# (default 180): meant for ten minutes each half.
# Profiles, records and what was printed go to FOLDER, and everything together to $PACK (FOLDER.tgz) after each part. A
# sweep that was stopped goes on when it is run with the same FOLDER again; SKIP=memory or SKIP=bench leaves a half out.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$1
budget=${2:-60}
grid=${3:-240}
skip=${SKIP:-}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
sweep=('embedding.*' 'layernorm.*' 'rmsnorm.*' 'gpt_embedding.*' --rows "${ROWS:-1k,8k,64k}" --d-model "${WIDTHS:-256:16384:x2}"
    --dtype fp32,bf16 --backend eager,compile --time-budget "$budget")

pack() { tar -czf "${PACK:-$out.tgz}" -C "$(dirname "$out")" "$(basename "$out")"; }

memory() {
    timeout 180 python3 -m pytest -m gpu tests/witness/test_cuda.py tests/witness/test_cuda_fits.py tests/ledger/test_local.py tests/modules --continue-on-collection-errors -q -p no:cacheprovider 2>&1 | tee "$out/pytest-memory.txt" | tail -n 12
    pack
    python3 benchmarks/cuda_grid.py "$out/memory/grid.json" "$grid" --workers "${WORKERS:-4}" 2>&1 | tee "$out/memory.txt"
    pack
    python3 -m gptcalc gpus show local 2>&1 | tee "$out/local.txt"
    python3 benchmarks/cuda_fits.py "$out/memory/fits.json" "${FITS:-180}" 2>&1 | tee "$out/fits.txt"
    pack
    python3 -m gptcalc check gpt2 --witness cuda --batch 8 2>&1 | tee "$out/check.txt"
    python3 -m gptcalc memory gpt2 --batch 8 > "$out/predicted.txt" 2>&1
    python3 benchmarks/memory.py 2>&1 | tee "$out/memory-speed.txt"
    pack
}

bench() {
    timeout 240 python3 -m pytest -m gpu tests/bench -q -p no:cacheprovider 2>&1 | tee "$out/pytest-bench.txt" | tail -n 5
    python3 benchmarks/bench.py 2>&1 | tee "$out/agreement.txt"
    pack
    python3 -m gptcalc bench --save "$out/headline.json" 2>&1 | tee "$out/headline.txt" | head -n 40
    for run in first second; do
        python3 -m gptcalc bench "${sweep[@]}" --save "$out/$run.json" > "$out/$run.txt" 2> "$out/$run.err"
        tail -n 2 "$out/$run.err"
        pack
    done
    python3 benchmarks/bench.py "$out/first.json" "$out/second.json" 2>&1 | tee "$out/twice.txt"
    pack
}

nvidia-smi > "$out/nvidia-smi.txt" 2>&1
[[ $skip == memory ]] || memory
[[ $skip == bench ]] || bench

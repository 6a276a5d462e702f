#!/usr/bin/env bash
# bench/gpu.sh OUT [EARLIER-results.tar.gz]
#
# The autopilot for a machine with a GPU: correctness first, then every suite, within ten minutes. Call it again to go on.
# Writes OUT/summary.json and OUT/results.tar.gz, and prints a short table last. It takes the Python, torch and Triton it
# finds (PYTHON=... chooses one), builds mify in place without fetching anything, and survives a part that fails.
# MIFY_GPU_DRY_RUN=1 goes through the same motions without a GPU, in seconds a part, to try the script itself.
set -uo pipefail
out=${1:?usage: bench/gpu.sh OUT [EARLIER-results.tar.gz]}
mkdir -p "$out"
out=$(cd "$out" && pwd)
earlier=()
if [ $# -ge 2 ]; then earlier=("$(cd "$(dirname "$2")" && pwd)/$(basename "$2")"); fi
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export MIFY_GPU_STARTED
MIFY_GPU_STARTED=$(date +%s)
python=${PYTHON:-python3}
dry=${MIFY_GPU_DRY_RUN:-0}

nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem,power.limit --format=csv 2>/dev/null || echo "nvidia-smi finds no GPU"
"$python" -c 'import sys, torch; print("Python", sys.version.split()[0], "torch", torch.__version__, "CUDA", torch.version.cuda)' || exit 2
if [ "$dry" = 0 ]; then
  "$python" -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "no GPU that torch can use: nothing was run")' || exit 2
fi
"$python" -c 'import triton; print("Triton", triton.__version__)' || true

# The extensions are built once a machine. Without them the Triton kernels and plain torch are measured.
if [ "$dry" = 0 ] && ! "$python" -c 'from mify._core import kernels; import mify._cuda' 2>/dev/null; then
  log="$out/build.log"
  if ! timeout 300 "$python" -m pip install --quiet --no-build-isolation --no-deps --break-system-packages -e . >"$log" 2>&1; then
    echo "the extensions could not be built; the end of $log:"
    tail -n 15 "$log"
  fi
fi
exec "$python" -m mify.bench.autopilot "$out" ${earlier[@]+"${earlier[@]}"}

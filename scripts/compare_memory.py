"""Compare the estimate of a pair's memory with the peak of a process that loads and uses it.

    python scripts/compare_memory.py                                   # the demo pair at 512, 4096 and 16384
    python scripts/compare_memory.py -c 4096 -m base.gguf --nudge instruct.gguf

Every option but -c goes to `edge-nudge estimate`; -c may be given several times. Ends with 1 if a difference is above
10 %. What a GPU holds is not measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

CONTEXTS = (512, 4096, 16384)
MOST = 0.10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--ctx-size", type=int, action="append")
    known, others = parser.parse_known_args()
    print(f"{'asked':>6}  {'base':>6}  {'nudging':>7}  {'estimate':>10}  {'measured':>10}  difference")
    worst = 0.0
    for ctx_size in known.ctx_size or CONTEXTS:
        command = [sys.executable, "-m", "edge_nudge.cli.main", "estimate", "--json", "--measure", "-c", str(ctx_size)]
        ended = subprocess.run([*command, *others], stdout=subprocess.PIPE, check=False)
        if not ended.stdout:
            return ended.returncode
        found = json.loads(ended.stdout)
        needed = next(device["needed_bytes"] for device in found["devices"] if device["device"] == "RAM")
        measured = found["measured_peak_bytes"]
        n_ctx = {role: model["n_ctx"] for role, model in found["models"].items()}
        difference = needed / measured - 1
        worst = max(worst, abs(difference))
        sizes = "  ".join(f"{n / 2**20:6.0f} MiB" for n in (needed, measured))
        print(f"{ctx_size:6}  {n_ctx['base']:6}  {n_ctx['nudging']:7}  {sizes}  {difference:+.1%}", flush=True)
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())

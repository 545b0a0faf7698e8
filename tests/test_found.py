"""Model files of other programs: found where these programs keep them, described, and never trusted."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path

import pytest
from tiny_gguf import CHATML, write_tiny

from edge_nudge.catalog import found, hub_cache, store
from edge_nudge.catalog.fields import parse_manifest
from edge_nudge.catalog.kinds import kind_of
from edge_nudge.catalog.names import locate_model, model_label
from edge_nudge.engine.gguf import read_model_file
from edge_nudge.errors import InputError, ModelFileError
from edge_nudge.spec import PairSpec

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("OLLAMA_MODELS", "LLAMA_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("EDGE_NUDGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("EDGE_NUDGE_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf", chat_template=CHATML).read_bytes()


def put_ollama(home: Path, name: str, data: bytes, *, sign: str = "-", registry: str = "registry.ollama.ai") -> Path:
    """Lay a model down as Ollama does; return its blob."""
    digest = hashlib.sha256(data).hexdigest()
    model, tag = name.split(":")
    model = model if "/" in model else f"library/{model}"
    place = home / ".ollama" / "models" / "manifests" / registry / model / tag
    place.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.template", "digest": f"sha256:{'0' * 64}", "size": 1},
        {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(data)},
    ]
    place.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    blob = home / ".ollama" / "models" / "blobs" / f"sha256{sign}{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    return blob


def put_hub(repo: str, file: str, data: bytes, commit: str = COMMIT, *, main: bool = True) -> Path:
    """Lay a file down as huggingface_hub does; return its place in the snapshot."""
    folder = hub_cache.repo_folder(repo)
    blob = folder / "blobs" / hashlib.sha256(data).hexdigest()
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(blob)
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(commit)
    return path


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def by_store() -> dict[str, list[tuple[str, Path]]]:
    listed: dict[str, list[tuple[str, Path]]] = {}
    for file in found.found_files():
        listed.setdefault(file.store, []).append((file.name, file.path))
    return listed


# Where they are


def test_every_store_is_found_where_its_program_keeps_it(home: Path, tiny: bytes) -> None:
    lm = put(home / ".lmstudio" / "models" / "maker" / "Model-GGUF" / "model-Q8_0.gguf", tiny)
    old = put(home / ".cache" / "lm-studio" / "models" / "maker" / "Old-GGUF" / "old.gguf", tiny)
    cpp = put(home / ".cache" / "llama.cpp" / "maker_Model-GGUF_model.gguf", tiny)
    own = put(home / "data" / "models" / "own.gguf", tiny)
    hub = put_hub("maker/Hub-GGUF", "hub-Q4_K_M.gguf", tiny)
    blob = put_ollama(home, "smollm2:135m", tiny)
    assert by_store() == {
        "edge-nudge": [("own.gguf", own)],
        "hugging face": [("maker/Hub-GGUF:hub-Q4_K_M.gguf", hub)],
        "ollama": [("ollama:smollm2:135m", blob)],
        "lm studio": [(str(old), old), (str(lm), lm)] if str(old) < str(lm) else [(str(lm), lm), (str(old), old)],
        "llama.cpp": [(str(cpp), cpp)],
    }


def test_the_environment_moves_the_stores(home: Path, tiny: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in (("OLLAMA_MODELS", "o"), ("LLAMA_CACHE", "l"), ("HF_HUB_CACHE", "h")):
        monkeypatch.setenv(name, str(home / folder))
    put(home / "l" / "m.gguf", tiny)
    put_hub("a/b", "m.gguf", tiny)
    put_ollama(home, "m:1", tiny)
    (home / ".ollama" / "models").rename(home / "o")
    assert {store: len(files) for store, files in by_store().items()} == {
        "llama.cpp": 1,
        "hugging face": 1,
        "ollama": 1,
    }
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    assert hub_cache.hub_cache_dir() == home / "hf" / "hub"


def test_stores_that_are_not_there_are_empty() -> None:
    assert by_store() == {}


@pytest.mark.parametrize("name", ["mmproj-model-f16.gguf", "model-imatrix.gguf", "model.gguf.part", "notes.txt"])
def test_what_is_no_model_is_left_out(home: Path, tiny: bytes, name: str) -> None:
    put(home / ".cache" / "llama.cpp" / name, tiny)
    assert by_store() == {}


def test_a_split_model_is_one_entry(home: Path) -> None:
    folder = home / ".lmstudio" / "models" / "a" / "b"
    folder.mkdir(parents=True)
    write_tiny(folder / "m.gguf", n_parts=3)
    ((_, path),) = by_store()["lm studio"]
    assert path.name.startswith("m-00001-of-")
    looked = found.look(next(iter(found.lm_studio_files())))
    assert looked.size_bytes == sum(part.stat().st_size for part in folder.iterdir())


def test_links_in_a_circle_end(home: Path, tiny: bytes) -> None:
    folder = home / ".lmstudio" / "models"
    put(folder / "a" / "b" / "m.gguf", tiny)
    (folder / "a" / "again").symlink_to(folder)
    assert len(by_store()["lm studio"]) == 1


# Ollama's names


@pytest.mark.parametrize(
    ("name", "written"),
    [("smollm2:135m", "smollm2:135m"), ("user/model:q4", "user/model:q4")],
)
def test_ollama_names_lead_to_blobs(home: Path, tiny: bytes, name: str, written: str) -> None:
    blob = put_ollama(home, name, tiny)
    assert [file.name for file in found.ollama_files()] == [f"ollama:{written}"]
    assert locate_model(f"ollama:{name}") == blob


def test_a_blob_is_called_by_the_name_of_its_model(home: Path, tiny: bytes, tmp_path: Path) -> None:
    blob = put_ollama(home, "smollm2:135m", tiny)
    assert model_label(blob) == "ollama:smollm2:135m"
    assert PairSpec(tmp_path / "base.gguf", blob).served_name == "base+ollama:smollm2:135m"
    stray = tmp_path / f"sha256-{'a' * 64}"  # a blob that no manifest names any more
    stray.write_bytes(tiny)
    assert model_label(stray) == (read_model_file(stray).name or stray.name)
    assert model_label(stray, "Their \x1b name") == "Their \x1b name"
    stray.write_bytes(b"no model")
    assert model_label(stray) == stray.name
    assert model_label(Path("sha256-abc.gguf")) == "sha256-abc"


def test_an_ollama_name_without_a_tag_is_the_latest(home: Path, tiny: bytes) -> None:
    blob = put_ollama(home, "m:latest", tiny, sign=":")  # as its first versions wrote it
    assert locate_model("ollama:m") == blob


def test_ollama_of_another_registry(home: Path, tiny: bytes) -> None:
    put_ollama(home, "user/repo:Q4_K_M", tiny, registry="hf.co")
    assert [file.name for file in found.ollama_files()] == ["ollama:hf.co/user/repo:Q4_K_M"]
    assert found.ollama_path("hf.co/user/repo:Q4_K_M") is not None


@pytest.mark.parametrize("name", ["../../../etc/passwd", "m:../../x", "", "..:latest", "a/b/c/d/e", "m\\x:1", "none:1"])
def test_a_name_never_leads_out_of_the_store(home: Path, tiny: bytes, name: str) -> None:
    put_ollama(home, "m:latest", tiny)
    with pytest.raises(ModelFileError, match=r"Ollama has no .*run 'ollama pull"):
        locate_model(f"ollama:{name}")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": 5}', '{"layers": [{}]}', '{"layers": [{"digest": "x"}]}'])
def test_a_damaged_manifest_of_ollama_is_no_model(home: Path, tiny: bytes, text: str) -> None:
    put_ollama(home, "m:1", tiny)
    next((home / ".ollama").rglob("library/m/1")).write_text(text)
    assert by_store() == {}
    with pytest.raises(ModelFileError, match="names no model file: run 'ollama pull m:1' again"):
        locate_model("ollama:m:1")


def test_a_blob_that_is_gone_is_told(home: Path, tiny: bytes) -> None:
    put_ollama(home, "m:1", tiny).unlink()
    assert by_store() == {}
    with pytest.raises(ModelFileError, match="is missing in"):
        locate_model("ollama:m:1")


# Names where a file may be given


def test_a_path_is_a_path_whatever_it_looks_like(home: Path, tiny: bytes) -> None:
    path = put(home / "user" / "repo", tiny)
    assert locate_model("user/repo") == Path("user/repo")
    assert locate_model(path) == path
    assert locate_model("missing.gguf") == Path("missing.gguf")  # what is wrong with it is said by who reads it


def test_hub_names_lead_into_the_cache(home: Path, tiny: bytes) -> None:
    path = put_hub("maker/M-GGUF", "M-Q4_K_M.gguf", tiny)
    other = put_hub("maker/M-GGUF", "M-Q8_0.gguf", tiny + b"\0")
    assert locate_model("maker/M-GGUF") == path
    assert locate_model("maker/M-GGUF:q8_0") == other
    assert locate_model("hf.co/maker/M-GGUF:M-Q8_0.gguf") == other


def test_main_comes_before_older_snapshots(home: Path, tiny: bytes) -> None:
    new = put_hub("maker/M-GGUF", "M-Q4_K_M.gguf", tiny)
    put_hub("maker/M-GGUF", "M-Q4_K_M.gguf", tiny + b"\0", "a" * 40, main=False)
    assert locate_model("maker/M-GGUF") == new
    (hub_cache.repo_folder("maker/M-GGUF") / "refs" / "main").write_text("a" * 40)
    assert locate_model("maker/M-GGUF").parent.name == "a" * 40


def test_what_is_not_here_says_how_to_get_it(home: Path, tiny: bytes) -> None:
    with pytest.raises(ModelFileError, match=r"base model a/b:Q2_K is not on this machine.*'edge-nudge pull a/b:Q2_K'"):
        locate_model("a/b:Q2_K", role="base")
    put_hub("a/b", "m-Q8_0.gguf", tiny)
    put_hub("a/b", "m-Q6_K.gguf", tiny)
    with pytest.raises(ModelFileError, match=r"in the cache, a/b has no file for Q2_K.*there is m-Q6_K\.gguf, m-Q8_0"):
        locate_model("a/b:Q2_K")


def test_a_pair_is_no_model() -> None:
    with pytest.raises(InputError, match="base model demo is a pair, not a model: use --pair demo"):
        locate_model("demo", role="base")


# A pair's file in another store


def test_a_pair_uses_what_another_program_holds(home: Path, tiny: bytes) -> None:
    sha256 = hashlib.sha256(tiny).hexdigest()
    model = 'file = "{0}.gguf"\nsha256 = "{1}"\nsize_bytes = {2}\n{3}\n'
    licence = (
        '[{0}.licence]\nname = "L"\nurl = "https://e.org"\nnotice = "N"\n[{0}.source]\nkind = "hub"\nrepo = "a/b"\n'
    )
    text = 'name = "t"\ntitle = "T"\ngamma = 0.4\n'
    for role, extra in (("base", 'prompt_format = "qa"'), ("nudging", "")):
        text += f"[{role}]\n" + model.format(role, sha256, len(tiny), extra) + licence.format(role)
    pair = parse_manifest(text, where="t")
    assert store.find_pair(pair) is None
    for place in (put_ollama(home, "m:1", tiny), put(home / ".lmstudio" / "models" / "x" / "y" / "z.gguf", tiny)):
        files = store.find_pair(pair)
        assert files is not None
        assert files.base.read_bytes() == tiny
        place.write_bytes(tiny[:-1] + bytes([tiny[-1] ^ 1]))  # same size, other content
    assert store.find_pair(pair) is None


# What a header says


def test_a_found_file_is_described(home: Path) -> None:
    path = home / ".cache" / "llama.cpp" / "tiny-it-F32.gguf"
    path.parent.mkdir(parents=True)
    write_tiny(path, chat_template=CHATML)
    looked = found.look(next(iter(found.llama_cpp_files())))
    assert (looked.architecture, looked.quantization, looked.n_ctx_train) == ("llama", "F32", 256)
    assert looked.kind is not None
    assert (looked.kind.kind, looked.kind.why) == ("instruct", 'its name says "it"')
    assert (looked.fault, looked.unusable) == (None, None)


@pytest.mark.parametrize(
    ("names", "template", "stated", "kind", "why"),
    [
        (["Qwen3-8B-Base.Q4_K_M.gguf"], CHATML, {}, "base", 'its name says "base"; its chat template is no sign'),
        (["Qwen3-8B.Q4_K_M.gguf"], CHATML, {}, "instruct", "it has a chat template, and no name says base"),
        (["model.gguf"], None, {}, "base", "it has no chat template, and no name says instruct"),
        (["llama-2-7b-chat.Q4_K_M.gguf"], None, {}, "instruct", 'its name says "chat"; but it has no chat template'),
        (["gemma-3-4b-pt-q4_0.gguf"], None, {}, "base", 'its name says "pt"'),
        (["ollama:gemma2:27b-text-q4_K_M"], CHATML, {}, "base", 'its name says "text"'),
        (["m.gguf"], CHATML, {"general.finetune": "Instruct"}, "instruct", 'general.finetune says "instruct"'),
        (["m.gguf"], CHATML, {"general.name": "Base Chat"}, "instruct", "it has a chat template"),
        (["m.gguf"], None, {"general.name": "Text of Itself"}, "base", "it has no chat template"),
    ],
)
def test_base_or_instruct_and_why(
    home: Path, names: list[str], template: str | None, stated: dict[str, object], kind: str, why: str
) -> None:
    path = write_tiny(home / "x.gguf", chat_template=template, changes={"general.name": "x", **stated})
    guess = kind_of(read_model_file(path), names)
    assert guess.kind == kind
    assert guess.why.startswith(why)


# B61: hostile and broken files are entries with a fault


def header(*, n_tensors: int = 0, n_keys: int = 0, rest: bytes = b"") -> bytes:
    return b"GGUF" + (3).to_bytes(4, "little") + n_tensors.to_bytes(8, "little") + n_keys.to_bytes(8, "little") + rest


def key(name: str, kind: int, value: bytes) -> bytes:
    return len(name).to_bytes(8, "little") + name.encode() + kind.to_bytes(4, "little") + value


def number(value: int, n_bytes: int = 8) -> bytes:
    return value.to_bytes(n_bytes, "little")


HOSTILE = {
    "too many keys": header(n_keys=2**63 - 1),
    "a string of a terabyte": header(n_keys=1, rest=key("a", 8, number(2**40))),
    "99 dimensions": header(n_tensors=1, rest=number(1) + b"t" + number(99, 4) + bytes(400)),
    "alignment 0": header(n_keys=1, rest=key("general.alignment", 4, number(0, 4))),
    "alignment 2**30": header(n_keys=1, rest=key("general.alignment", 4, number(2**30, 4))),
    "type 200": header(n_keys=1, rest=key("a", 200, bytes(64))),
    "nested arrays": header(
        n_keys=1, rest=key("a", 9, number(9, 4) + number(1) + number(9, 4) + number(1) + bytes(64))
    ),
    "an offset past the end": header(
        n_tensors=1, rest=number(1) + b"t" + number(1, 4) + number(32) + number(0, 4) + number(2**40) + bytes(64)
    ),
    "no model": b"<html>no</html>",
    "empty": b"",
}


def test_hostile_files_are_shown_as_such_in_little_memory(home: Path) -> None:
    folder = home / ".cache" / "llama.cpp"
    for name, data in HOSTILE.items():
        put(folder / f"{name}.gguf", data)
    found.look(next(iter(found.llama_cpp_files())))  # what is imported on first use is not theirs
    tracemalloc.start()
    looked = {file.path.stem: found.look(file) for file in found.llama_cpp_files()}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert looked.keys() == HOSTILE.keys()
    for name, what in looked.items():
        assert what.fault, name
        assert "\n" not in what.fault
        assert what.architecture is None
    assert peak < 50e6

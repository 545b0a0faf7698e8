"""The shipped pairs, a user's own ones, and what they say."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import pytest

from edge_nudge.catalog import store
from edge_nudge.catalog.fields import DEFAULT_CTX, HubSource, OllamaSource, PairManifest, parse_toml
from edge_nudge.catalog.manifest import known_pairs, list_manifests, load_manifest, user_pairs_dir
from edge_nudge.cli import needs
from edge_nudge.core.events import Role
from edge_nudge.core.request import Message
from edge_nudge.core.template import ChatTemplate, base_format, render_chat
from edge_nudge.engine.memory import PROGRAM_BYTES
from edge_nudge.errors import InputError

FOLDER = Path(__file__).parent.parent / "models"
SHIPPED = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGE_NUDGE_CONFIG_DIR", str(tmp_path / "config"))
    (tmp_path / "config" / "models").mkdir(parents=True)
    return tmp_path / "config" / "models"


# Shipped


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_pair_says_all_that_a_user_has_to_know(name: str) -> None:
    pair = load_manifest(name)
    assert pair.figures is not None
    assert 0.2 <= pair.gamma <= 0.5  # the range in which the paper found that it works
    base_format(pair.base.prompt_format)
    for _, model in store.models_of(pair):
        assert model.licence is not None
        assert model.verified
        assert model.quantization
        assert model.shape is not None
        assert model.nominal_bytes is not None
        # a name alone is no proof; these words are, and a base model has none of those of the other kind
        words = set(f"{model.file} {getattr(model.source, 'repo', '')}".lower().replace(".", "-").split("-"))
        is_instruct = bool(words & {"instruct", "it", "chat"})
        assert is_instruct == (model is pair.nudging)


def test_base_models_of_makers_who_name_the_instruct_one_plainly() -> None:
    for name in SHIPPED:
        base = load_manifest(name).base
        if "qwen3" in base.file.lower():
            assert "-Base" in base.file
        if "gemma-3-4b" in base.file.lower():
            assert "-pt-" in base.file


def test_the_shipped_pairs_are_those_of_the_paper_and_of_later_work() -> None:
    assert {"demo", "llama-2-70b", "gemma-2-27b", "gemma-2-27b-llama-2-7b", "gemma-3-4b", "llama-3-8b"} <= set(SHIPPED)
    assert {"qwen-3-8b-llama-3-1b", "qwen-3-8b-gemma-3-1b", "olmo-2-7b"} <= set(SHIPPED)


def test_one_file_is_described_alike_everywhere() -> None:
    seen: dict[str, tuple[object, ...]] = {}
    for name in SHIPPED:
        for _, model in store.models_of(load_manifest(name)):
            about = (model.sha256, model.nominal_bytes, model.source, model.licence, model.shape, model.quantization)
            assert seen.setdefault(model.file, about) == about


def test_memory_is_weights_cache_buffers_and_vocabulary() -> None:
    pair = load_manifest("demo")
    base = pair.base
    cache = 2 * 18 * 1 * 256 * 2 * 4096  # keys and values, layers, heads, width, float16, tokens
    parts = base.memory_parts(4096, "f16")
    assert parts is not None
    assert (parts["weights"], parts["KV cache"]) == (253113024, cache)
    assert base.memory_bytes() == sum(parts.values())
    assert (base.memory_bytes() or 0) - (base.memory_bytes(256) or 0) == cache - cache // 16
    assert (base.memory_bytes() or 0) - (base.memory_bytes(4096, "q8_0") or 0) == cache - cache * 34 // 64
    both = (base.memory_bytes() or 0) + (pair.nudging.memory_bytes() or 0)
    assert (pair.memory_bytes() or 0) - both == PROGRAM_BYTES


@pytest.mark.demo
@pytest.mark.parametrize("n_ctx", [512, 4096, 8192])
def test_manifest_and_files_say_the_same_of_memory(demo_paths: tuple[Path, Path], n_ctx: int) -> None:
    pair = load_manifest("demo")
    paths = dict(zip(Role, demo_paths, strict=True))
    plan = needs.plan_of_files(paths, n_ctx=n_ctx)
    assert needs.plan_of_files(paths) == needs.plan_of_files(paths, n_ctx=DEFAULT_CTX)
    assert plan is not None
    assert pair.memory_bytes(n_ctx) == pytest.approx(needs.bytes_of(plan), rel=0.03)
    for role, model in store.models_of(pair):
        assert model.memory_bytes(n_ctx) == pytest.approx(needs.bytes_of(plan, role), rel=0.05)


@pytest.mark.demo
def test_the_shape_of_the_demo_pair_is_that_of_its_files(demo_paths: tuple[Path, Path]) -> None:
    from edge_nudge.engine.gguf import read_model_file

    pair = load_manifest("demo")
    for path, (_, model) in zip(demo_paths, store.models_of(pair), strict=True):
        header = read_model_file(path)
        of, arch = header.metadata.get, header.architecture
        width = of(f"{arch}.attention.key_length") or int(of(f"{arch}.embedding_length", 0)) // int(
            of(f"{arch}.attention.head_count", 1)
        )
        assert model.shape is not None
        shape = (model.shape.n_layers, model.shape.n_kv_heads, model.shape.head_dim, model.shape.n_vocab)
        assert shape == (header.n_layers, of(f"{arch}.attention.head_count_kv"), width, header.n_vocab)
        assert model.quantization == header.quantization


def test_the_template_of_a_file_that_is_older_than_templates() -> None:
    source = load_manifest("llama-2-70b").nudging.chat_template
    messages = [
        Message(role="system", content="Be brief."), Message(role="user", content="Hi"),
        Message(role="assistant", content="Hello."), Message(role="user", content="Why?"),
    ]  # fmt: skip
    spans = render_chat(ChatTemplate(source), messages, bos="<s>", eos="</s>", now=datetime(2026, 1, 1))
    text = "".join(span.text for span in spans)
    assert text == "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello. </s><s>[INST] Why? [/INST]"
    assert [span.text for span in spans if span.is_user] == ["Be brief.", "Hi", "Hello.", "Why?"]


# A user's own


def write(config: Path, name: str, text: str) -> Path:
    path = config / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


OWN = """
title = "Mine"
gamma = 0.3
[base]
prompt_format = "plain"
[base.source]
kind = "file"
path = "~/models/Big Model.gguf"
[nudging]
[nudging.source]
kind = "ollama"
model = "smollm2:135m"
"""


def test_a_pair_of_files_on_this_machine_needs_little(config: Path) -> None:
    write(config, "mine", OWN.replace("[nudging]", '[nudging]\nfile = "smollm2.gguf"'))
    pair = load_manifest("mine")
    assert (pair.name, pair.base.file, pair.base.sha256) == ("mine", "Big_Model.gguf", None)
    assert isinstance(pair.nudging.source, OllamaSource)
    assert "mine" in list_manifests()
    assert pair.memory_bytes() is None


def test_a_pair_can_extend_a_shipped_one(config: Path) -> None:
    write(config, "bold", 'extends = "demo"\ngamma = 0.6\n[nudging]\nchat_template = "{{ messages }}"\n')
    demo, bold = load_manifest("demo"), load_manifest("bold")
    assert (bold.gamma, bold.nudging.chat_template) == (0.6, "{{ messages }}")
    assert bold.base == demo.base
    assert bold.nudging.source == demo.nudging.source


def test_another_source_takes_nothing_over_from_the_old_one(config: Path) -> None:
    write(config, "other", 'extends = "llama-3-8b"\n[base.source]\nkind = "file"\npath = "/m/llama.gguf"\n')
    base = load_manifest("other").base
    assert (base.file, base.sha256, base.about_bytes, base.verified, base.shape) == (
        "llama.gguf",
        None,
        None,
        None,
        None,
    )
    assert base.prompt_format == "qa"


def test_a_user_s_pair_comes_before_a_shipped_one_of_its_name(config: Path) -> None:
    place = write(config, "demo", 'extends = "demo"\ngamma = 0.9\n')
    assert load_manifest("demo").gamma == 0.9
    assert next(pair for pair in known_pairs() if pair.name == "demo").place == place


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "nothing"', "extends: is 'nothing', the shipped pairs are demo, "),
        ("extends = 5", "extends: is 5"),
        ('extends = "demo"\ngamma = 2.0', "gamma: is 2, for rule top_prob it is at most 1"),
        ('extends = "demo"\n[base]\nprompt_format = 3', "base.prompt_format: "),
        ('extends = "demo"\n[base.source]\nkind = "hub"\nrepo = "nobody"', "base.source.repo: "),
        ('extends = "demo"\n[base.source]\nrepo = "a/b"', "base.source.kind: Field required"),
        ('extends = "demo"\n[base]\nfile="a.gguf"\n[base.source]\nkind = "hub"\nrepo = "a/b"', "licence is missing"),
        ('extends = "demo"\nname = "else"', "name: is 'else', must be 'own' as in the file's name"),
        ("gamma = ", "not valid TOML"),
        ("", "title: Field required"),
    ],
)
def test_a_fault_names_the_file_and_the_field_and_hides_no_other_pair(config: Path, text: str, words: str) -> None:
    path = write(config, "own", text)
    with pytest.raises(InputError) as error:
        load_manifest("own")
    assert str(error.value).startswith(f"{path}: ")
    assert words in str(error.value)
    pairs = {pair.name: pair for pair in known_pairs()}
    assert pairs["own"].fault == str(error.value)
    assert pairs["demo"].fault is None


@pytest.mark.parametrize(("data", "words"), [(b"\xff\xfe", "not UTF-8, at byte 0"), (b"#" * (2 << 20), "longer than")])
def test_what_is_no_text_is_told(config: Path, data: bytes, words: str) -> None:
    (config / "own.toml").write_bytes(data)
    with pytest.raises(InputError, match=words):
        load_manifest("own")


def test_a_link_to_nothing_is_told(config: Path) -> None:
    (config / "own.toml").symlink_to(config / "gone")
    with pytest.raises(InputError, match=r"own\.toml: is not there: .* a link to nothing"):
        load_manifest("own")


def test_a_name_that_is_none_is_told(config: Path) -> None:
    write(config, "My Pair", OWN)
    with pytest.raises(InputError, match="small letters, digits"):
        load_manifest("My Pair")
    assert any(pair.fault for pair in known_pairs())


def test_other_files_in_the_folder_are_no_pairs(config: Path) -> None:
    for name in ("README.md", ".hidden.toml", "x.toml~"):
        (config / name).write_text("no")
    assert list(list_manifests()) == SHIPPED
    assert user_pairs_dir() == config


def test_the_manifests_are_plain_toml() -> None:
    for name in SHIPPED:
        data = parse_toml((FOLDER / f"{name}.toml").read_text(encoding="utf-8"), where=name)
        assert isinstance(PairManifest.model_validate(data), PairManifest)


def test_hub_sources_are_pinned_where_the_hash_is() -> None:
    """A revision without a hash could never be replaced; a hash without a revision can."""
    for name in SHIPPED:
        for _, model in store.models_of(load_manifest(name)):
            if isinstance(model.source, HubSource) and model.source.revision:
                assert model.sha256


def test_the_examples_in_the_readme_are_pairs(config: Path) -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    examples = re.findall(r"```toml\n(.*?)```", readme, re.DOTALL)
    assert len(examples) == 2
    for i, text in enumerate(examples):
        write(config, f"example-{i}", text)
        assert load_manifest(f"example-{i}").gamma in (0.3, 0.35)


def test_the_readme_lists_every_shipped_pair() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `([a-z0-9.-]+)` \| .* GB \| .* GB \|$", readme, re.MULTILINE)) == SHIPPED

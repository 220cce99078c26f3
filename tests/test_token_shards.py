"""Training from token shards: each window once an epoch, shares that hold at every step, and damage that is told."""

from __future__ import annotations

import json
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from axon_core.cli import main
from axon_core.errors import ConfigError, DataError
from axon_core.randomness import Key
from axon_core.text import TokenData, TokensConfig, load_language_data
from axon_core.text.mixture import FINEST, Mixture
from axon_core.text.permutation import Permutation
from axon_core.text.tokenizer import ByteTokenizer
from axon_core.training.build import build_trainer
from axon_core.training.loop import fit
from axon_core.training.recipe import Recipe

MODEL = {"type": "xllama", "dim": 16, "n_layers": 1, "n_heads": 2, "context": 8}


@given(st.integers(1, 3000), st.integers(0, 5))
def test_a_permutation_has_each_number_once(size: int, seed: int) -> None:
    order = Permutation(size, Key((seed,)))
    numbers = order(np.arange(size))
    assert sorted(numbers.tolist()) == list(range(size))
    assert order(np.array([size - 1, 0])).tolist() == [numbers[-1], numbers[0]]


def test_every_number_is_as_likely_at_every_place() -> None:
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), Permutation(6, Key((seed,)))(np.arange(6))] += 1
    assert abs(counts / 500 - 1).max() < 0.2  # about 5 standard deviations
    large = Permutation(10**15, Key((0,)))(np.arange(10_000))
    assert len({*large.tolist()}) == 10_000 and abs(large.mean() / 10**15 - 0.5) < 0.02
    assert abs(np.corrcoef(large[1:], large[:-1])[0, 1]) < 0.05


@settings(deadline=None, max_examples=25)
@given(st.lists(st.one_of(st.integers(1, 9), st.floats(0.001, 1000)), min_size=1, max_size=7))
def test_shares_hold_at_every_example(weights: list[float]) -> None:
    mixture = Mixture(weights)
    sources, ranks = mixture.at(np.arange(3000))
    counts = (sources[:, None] == np.arange(len(weights))).cumsum(0)
    shares = np.array([float(share) for share in mixture.shares])
    assert abs(counts - np.arange(1, 3001)[:, None] * shares).max() < 1
    assert (ranks == counts[np.arange(3000), sources] - 1).all()
    assert sum(mixture.shares) == 1 and min(shares) > 0
    for n, source, rank in zip(range(10**12, 10**12 + 50), *mixture.at(np.arange(10**12, 10**12 + 50)), strict=True):
        assert abs(int(rank) - mixture.shares[source] * n) < 1


def test_simple_shares_are_exact_and_others_rounded() -> None:
    assert [str(share) for share in Mixture([0.67, 0.33]).shares] == ["67/100", "33/100"]
    assert [str(share) for share in Mixture([1, 2, 4]).shares] == ["1/7", "2/7", "4/7"]
    shares = Mixture([0.123456, 1.0, 1e-9]).shares
    assert all(share * FINEST == int(share * FINEST) for share in shares)
    assert abs(float(shares[0]) - 0.123456 / 1.123456) < 2 / FINEST and shares[2] * FINEST == 1


def lines(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents), encoding="utf-8")
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of shards whose documents have a letter each."""

    def make(name: str, count: int = 60, size: int = 23, tokenizer: str = "byte", shard_bytes: int = 1024) -> Path:
        letters = [chr(97 + (i + ord(name[0])) % 26) for i in range(count)]
        file = lines(tmp_path / f"{name}.jsonl", [letter * (size + i % 5) for i, letter in enumerate(letters)])
        words = ["tokenize", file, "--tokenizer", tokenizer, "--out", tmp_path / name, "--shard-bytes", shard_bytes]
        assert main([*map(str, words)]) == 0
        return tmp_path / name

    return make


def stream(folder: Path) -> list[list[int]]:
    """The tokens of each shard."""
    index = json.loads((folder / "index.json").read_text())
    return [load_file(folder / shard["name"])["tokens"].tolist() for shard in index["shards"]]


def data_of(folder: Path, **options: object) -> TokenData:
    return TokenData.load(TokensConfig.model_validate({"path": str(folder), **options}))


def pieces(rows: torch.Tensor) -> list[tuple[int, ...]]:
    return [tuple(row) for row in rows.tolist()]


def numbered(tmp_path: Path, name: str = "n", begin: int = 0, end: int = 4000, tokenizer: Path | str = "char") -> Path:
    """Shards whose tokens are all different, so that each says where it stands."""
    characters = "".join(chr(0x4E00 + i) for i in range(begin, end))
    documents = [characters[i : i + 37] for i in range(0, len(characters), 37)]
    file = lines(tmp_path / f"{name}.jsonl", documents)
    words = ["tokenize", file, "--tokenizer", tokenizer, "--out", tmp_path / name, "--shard-bytes", 3000]
    assert main([*map(str, words)]) == 0
    return tmp_path / name


def test_an_epoch_has_each_window_once_and_nothing_that_is_held_out(tmp_path: Path) -> None:
    data = data_of(numbered(tmp_path), held_out=0.1)
    examples = data.examples(8, Key((0,)))
    per_epoch = round(1 / examples.sources(1)[0].epochs)
    epochs = [
        torch.cat([examples.batch(step, 1)["tokens"] for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)])
        for epoch in range(3)
    ]
    held = {token for batch in data.held_out_examples(8, 3) for token in batch["tokens"].flatten().tolist()}
    for rows in epochs:
        assert (rows.diff(dim=1) == 1).all()  # each is a piece of the text
        targets = rows[:, 1:].flatten().tolist()
        assert len({*targets}) == len(targets)
        assert not held & {*rows.flatten().tolist()}
        assert len(targets) > 0.9 * (4000 - len(held) - 2 * 8 * len(stream(tmp_path / "n")))
    assert len({tuple(pieces(rows)) for rows in epochs}) == 3
    assert len({rows[0, 0].item() % 8 for rows in epochs} | {rows[1, 0].item() % 8 for rows in epochs}) > 1
    whole = torch.cat([examples.batch(step, 7)["tokens"] for step in range(9)])
    assert torch.equal(torch.cat([examples.batch(step, 1)["tokens"] for step in range(63)]), whole)
    assert torch.equal(data.examples(8, Key((0,))).batch(5, 7)["tokens"], whole[35:42])
    assert not torch.equal(data.examples(8, Key((1,))).batch(5, 7)["tokens"], whole[35:42])


def test_evaluation_has_each_held_out_target_once_and_begins_with_a_document(tmp_path: Path) -> None:
    data = data_of(numbered(tmp_path), held_out=0.3)
    for size in (1, 3, 100):
        batches = [batch["tokens"] for batch in data.held_out_examples(8, size)]
        targets = [token for batch in batches for token in batch[:, 1:].flatten().tolist()]
        assert len({*targets}) == len(targets) == data.held_out_targets
        assert all(len(batch) <= size and batch.shape[1] <= 9 for batch in batches)
    assert data.beginning(5) == [*range(data.beginning(1)[0], data.beginning(1)[0] + 5)]
    assert (data.beginning(1)[0] - 1) % 37 == 0 and data.beginning(1)[0] >= 0.7 * 4000
    few = torch.cat([batch["tokens"] for batch in data.held_out_examples(8, 3, most=50)])
    assert few.shape == (7, 9) and (few[-1] - few[0]).min() > 700


@pytest.mark.parametrize("validation", [0.0005, 0.03, 0.4])
def test_a_validation_part_ends_where_the_held_out_part_begins(tmp_path: Path, validation: float) -> None:
    folder = numbered(tmp_path)
    plain, data = data_of(folder, held_out=0.3), data_of(folder, held_out=0.3, validation=validation)

    def held(data: TokenData) -> set[int]:
        return {token for batch in data.held_out_examples(8, 3) for token in batch["tokens"].flatten().tolist()}

    trained = {*data.examples(8, Key((0,))).batch(0, 400)["tokens"].flatten().tolist()}
    assert held(data) and max(held(data)) < min(held(plain)) and max(trained) < min(held(data))
    share = len(held(data)) / 2800
    assert abs(share - validation) < 0.015  # a document has 37 tokens
    assert data.digest != plain.digest
    assert str(data.examples(8, Key((0,))).sources(0)[0]).endswith("for validation")


def test_sources_are_mixed_by_weight_and_each_has_epochs_of_its_own(tmp_path: Path) -> None:
    both = numbered(tmp_path, "both", 0, 4000)
    a, b = (numbered(tmp_path, name, *part, tokenizer=both) for name, part in (("a", (0, 3000)), ("b", (3000, 4000))))
    table = TokensConfig.model_validate({"paths": {str(a): 0.67, str(b): 0.33}, "held_out": 0.05})
    examples = TokenData.load(table).examples(8, Key((0,)))
    plan = examples.sources(1000)
    assert [source.share for source in plan] == [0.67, 0.33]
    rows = torch.cat([examples.batch(step, 10)["tokens"] for step in range(120)])
    from_a = rows[:, 0] <= 3000
    assert ((rows <= 3000).all(1) == from_a).all()
    expected = 0.67 * torch.arange(1, 1201, dtype=torch.float64)
    assert ((from_a.cumsum(0) - expected).abs() < 1).all()
    for source, own in zip(plan, (rows[from_a], rows[~from_a]), strict=True):
        per_epoch = round(source.share * 1000 / source.epochs)
        epochs = own[: len(own) // per_epoch * per_epoch].split(per_epoch)
        assert len(epochs) > 1
        for epoch in epochs:
            targets = epoch[:, 1:].flatten().tolist()
            assert len({*targets}) == len(targets)
        assert not torch.equal(epochs[0], epochs[1])


def test_documents_are_numbered_and_masked(shards: Callable[..., Path]) -> None:
    folder = shards("a")
    data = data_of(folder, documents=True)
    batch = data.examples(64, Key((0,))).batch(0, 12)
    inputs = batch["tokens"][:, :-1]
    assert batch["documents"].shape == inputs.shape
    ended = (inputs == ByteTokenizer.eos).long().cumsum(1)
    assert torch.equal(batch["documents"], ended - (inputs == ByteTokenizer.eos).long())
    held = next(data.held_out_examples(16, 4))
    assert held["documents"].shape == held["tokens"][:, 1:].shape
    tables = {"model": MODEL, "trainer": {"type": "causal_lm", "batch_size": 4, "steps": 2}}
    recipe = {**tables, "data": {"type": "tokens", "path": str(folder), "documents": True}}
    trainer = build_trainer(Recipe.of(recipe, "small", "a test"))
    batch = trainer.batch(0)
    batch["tokens"][0] = torch.tensor([97] * 4 + [257] + [98] * 4)
    batch["documents"][0] = torch.tensor([0] * 5 + [1] * 3)
    loss = trainer.loss({name: part[:1] for name, part in batch.items()})["loss"]
    other = {name: part[:1].clone() for name, part in batch.items()}
    other["tokens"][0, :3] = 99
    first = trainer.models["model"](batch["tokens"][:1, :-1], documents=batch["documents"][:1])
    second = trainer.models["model"](other["tokens"][:, :-1], documents=other["documents"])
    assert torch.equal(first[0, 5:], second[0, 5:]) and not torch.equal(first[0, 4], second[0, 4])
    alone = trainer.models["model"](batch["tokens"][:1, 5:-1])
    torch.testing.assert_close(first[:, 5:], alone)
    assert loss.isfinite() and not torch.equal(loss, trainer.loss(other)["loss"])


def recipe_for(folder: Path, steps: int = 6, **data: object) -> Recipe:
    tables = {
        "model": MODEL,
        "trainer": {"type": "causal_lm", "batch_size": 4, "steps": steps},
        "data": {"type": "tokens", "path": str(folder), **data},
    }
    return Recipe.of(tables, "small", "a test")


def test_a_training_resumes_exactly_and_notices_other_shards(tmp_path: Path, shards: Callable[..., Path]) -> None:
    folder = shards("a")
    whole, part = build_trainer(recipe_for(folder)), build_trainer(recipe_for(folder))
    fit(whole, tmp_path / "whole", progress=False)
    fit(part, tmp_path / "part", progress=False, stop_at=3)
    rest = build_trainer(recipe_for(folder), tmp_path / "part" / "checkpoints" / "step-3" / "model")
    fit(rest, tmp_path / "part", progress=False, resume=True)
    for name, value in whole.models["model"].state_dict().items():
        assert torch.equal(value, rest.models["model"].state_dict()[name]), name
    assert whole.data_digest() == rest.data_digest()
    assert build_trainer(recipe_for(shards("b"))).data_digest() != whole.data_digest()
    assert build_trainer(recipe_for(folder, held_out=0.5)).data_digest() != whole.data_digest()
    metrics = whole.evaluate()
    assert metrics["tokens"] == whole.data.held_out_targets and metrics["bits_per_byte"] > 0
    assert isinstance(whole.sample(), str)


def test_a_dry_run_says_how_often_the_data_are_read(
    tmp_path: Path, shards: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = shards("a"), shards("b", count=9)
    table = f"data={{type='tokens', paths={{'{a}'=3, '{b}'=1}}}}"
    line = ["train", "xllama-tiny", "--set", table, "--set", "model.context=8", "--set", "trainer.steps=100"]
    capsys.readouterr()
    assert main([*line, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert f"# data {a}: " in text and "75 % of the examples" in text and "25 % of the examples" in text
    assert tomllib.loads(text)["data"]["type"] == "tokens"
    assert main([*line, "--dry-run", "--json"]) == 0
    sources = json.loads(capsys.readouterr().out)["sources"]
    assert sum(source["share"] for source in sources) == 1
    trained = sum(len(shard) for shard in stream(a))
    assert sources[0]["tokens"] + sources[0]["held_out"] == trained
    windows = sum((n - 8) // 8 for n in [len(shard) for shard in stream(a)[:-1]])
    assert 900 / (windows + 99) < sources[0]["epochs"] <= 900 / windows
    assert main(["train", "xllama-tiny", "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"][0]["name"] == "text"


def test_info_shows_the_counts_and_verifies(shards: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = shards("a")
    capsys.readouterr()
    assert main(["info", str(folder), "--verify"]) == 0
    said = capsys.readouterr().out
    assert "all as their checksums say" in said and "documents: 60" in said and "tokenizer: byte" in said
    assert main(["info", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["documents"] == 60
    shard = folder / "00000-0000.safetensors"
    data = bytearray(shard.read_bytes())
    data[2100] ^= 1
    shard.write_bytes(data)
    assert main(["info", str(folder)]) == 0
    assert main(["info", str(folder), "--verify"]) == 1
    assert "is damaged: it does not match its checksum" in capsys.readouterr().err
    assert main(["info", "GQA", "--verify"]) == 2


def truncated(folder: Path, other: Path) -> None:
    shard = folder / "00000-0000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-9])


def without_header(folder: Path, other: Path) -> None:
    (folder / "00000-0000.safetensors").write_bytes(b"abc")


def missing(folder: Path, other: Path) -> None:
    (folder / "00001-0000.safetensors").unlink()


def of_another_vocabulary(folder: Path, other: Path) -> None:
    shutil.copy(other / "00000-0000.safetensors", folder / "00000-0000.safetensors")


def exchanged(folder: Path, other: Path) -> None:
    shutil.copy(folder / "00000-0000.safetensors", folder / "00001-0000.safetensors")


def changed_index(folder: Path, other: Path) -> None:
    (folder / "index.json").write_text((folder / "index.json").read_text().replace('"tokens": ', '"tokens": 1', 1))


def index_that_leads_out(folder: Path, other: Path) -> None:
    text = (folder / "index.json").read_text().replace('"00000-0000', '"../00000-0000')
    (folder / "index.json").write_text(text)
    (folder / "manifest.json").unlink()


def cut_index(folder: Path, other: Path) -> None:
    (folder / "index.json").write_bytes((folder / "index.json").read_bytes()[:100])
    (folder / "manifest.json").unlink()


def no_index(folder: Path, other: Path) -> None:
    (folder / "index.json").unlink()


def other_tokenizer(folder: Path, other: Path) -> None:
    for name in ("tokenizer.json", "tokenizer.model"):
        if (other / name).exists():
            shutil.copy(other / name, folder / name)
    (folder / "manifest.json").unlink()


def damaged_header(folder: Path, other: Path) -> None:
    shard = folder / "00000-0000.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b'"tokens": "', b'"tokens": "9', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncated, "00000-0000.safetensors must have"),
        (without_header, "it is shorter than its header"),
        (missing, "cannot read the shard .*00001-0000.safetensors: No such file"),
        (of_another_vocabulary, "made with another tokenizer than its folder"),
        (exchanged, "is not the one that index.json names"),
        (changed_index, "index.json was changed after it was written"),
        (index_that_leads_out, "index.json is damaged"),
        (cut_index, "index.json is damaged"),
        (no_index, "is not a complete folder of token shards"),
        (other_tokenizer, "is not the one that made the shards"),
        (damaged_header, "is damaged or not a token shard"),
    ],
)
def test_damage_is_told_in_one_message(
    shards: Callable[..., Path], capsys: pytest.CaptureFixture[str], damage: Callable[..., None], message: str
) -> None:
    folder = shards("a")
    damage(folder, shards("other", tokenizer="char"))
    with pytest.raises(DataError, match=message):
        data_of(folder)
    capsys.readouterr()
    table = f"data={{type='tokens', path='{folder}'}}"
    assert main(["train", "xllama-tiny", "--dry-run", "--set", table]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said


def test_a_shard_that_becomes_shorter_is_told(shards: Callable[..., Path]) -> None:
    folder = shards("a")
    examples = data_of(folder).examples(8, Key((0,)))
    examples.batch(0, 8)
    for shard in folder.glob("*.safetensors"):
        os.truncate(shard, 2060)
    with pytest.raises(DataError, match=r"is truncated: it ends before byte .*; restore it"):
        examples.batch(1, 8)


def test_a_token_beyond_the_vocabulary_is_told(shards: Callable[..., Path]) -> None:
    folder = shards("a")
    for shard in folder.glob("*.safetensors"):
        data = bytearray(shard.read_bytes())
        data[2048 : 2048 + 200] = b"\xff" * 200
        shard.write_bytes(data)
    with pytest.raises(DataError, match="is damaged: it has token 65535, but its tokenizer only 258"):
        examples = data_of(folder, held_out=0.01).examples(64, Key((0,)))
        for step in range(30):
            examples.batch(step, 8)


def test_wrong_requests_are_told(shards: Callable[..., Path], tmp_path: Path) -> None:
    a, c = shards("a"), shards("c", tokenizer="char")
    for table, message in (
        ({}, "give either path, one folder, or paths"),
        ({"path": str(a), "paths": {str(a): 1}}, "give either path, one folder, or paths"),
        ({"paths": {}}, "at least 1"),
        ({"paths": {str(a): 0}}, "greater than 0"),
        ({"path": str(a), "tokenizer": "char"}, "unknown field 'tokenizer'"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_language_data({"type": "tokens", **table})
    with pytest.raises(ConfigError, match="must be text or tokens, got 'token'"):
        load_language_data({"type": "token"})
    for table, message in (
        ({"paths": {str(a): 1, str(c): 1}}, "were made with different tokenizers, of 27 and 258 tokens"),
        ({"paths": {str(a): 1, f"{a}/": 1}}, "names a folder twice"),
        ({"path": str(tmp_path / "none")}, "no such folder"),
    ):
        with pytest.raises(DataError, match=message):
            load_language_data({"type": "tokens", **table})
    with pytest.raises(DataError, match="made with a tokenizer other than the model's"):
        load_language_data({"type": "tokens", "path": str(c)}, ByteTokenizer())
    with pytest.raises(DataError, match="at least context \\+ 1 = 5001 tokens"):
        data_of(a).examples(5000, Key((0,)))
    tiny = lines(tmp_path / "tiny.jsonl", ["a"])
    assert main(["tokenize", str(tiny), "--tokenizer", "byte", "--out", str(tmp_path / "t")]) == 0
    with pytest.raises(DataError, match="at least context"):
        data_of(tmp_path / "t").examples(8, Key((0,)))

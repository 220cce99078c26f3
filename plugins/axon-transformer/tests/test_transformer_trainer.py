"""Training: what is minimised, exact resumption, the schedule, averaging, and that it learns."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from axon_core import CheckpointError, ConfigError, ContractError, UsageError
from axon_core.training import Recipe, build_trainer, evaluate, fit, schedule
from axon_transformer import Search, Transformer, TranslationTrainer, Translator, average, bleu
from axon_transformer.averaging import latest_models

Build = Callable[..., TranslationTrainer]


@pytest.fixture
def build(small: Callable[..., Recipe]) -> Build:
    """Return a function that builds the trainer of a small recipe, with overrides."""
    return lambda *overrides: build_trainer(small(*overrides))


def weights(trainer: TranslationTrainer) -> dict[str, torch.Tensor]:
    return trainer.model.state_dict()


def test_the_loss_is_label_smoothed_cross_entropy_over_real_tokens(build: Build) -> None:
    trainer = build("trainer.label_smoothing=0.2")
    data = trainer.batch(0)
    source, target = data["source"], data["target"]
    terms, counts = trainer.loss(data), trainer.counts(data)
    with torch.no_grad():
        logits = trainer.model.eval()(source, target[:, :-1], valid=source >= 0)
        trainer.model.train()
    flat, wanted = logits.flatten(0, 1), target[:, 1:].flatten()
    options: dict[str, Any] = {"ignore_index": -1, "reduction": "sum"}
    torch.testing.assert_close(terms["loss"], cross_entropy(flat, wanted, label_smoothing=0.2, **options))
    torch.testing.assert_close(terms["nll"], cross_entropy(flat, wanted, **options))
    assert counts == {"loss": (wanted >= 0).sum(), "nll": (wanted >= 0).sum()} and not terms["nll"].requires_grad


@pytest.mark.parametrize(
    "options",
    [
        ("model.dropout=0.3", "trainer.ema=0.9"),
        ("model.dropout=0.3", "trainer.precision=bf16", "trainer.micro_batches=2", "trainer.optimizer.type=adamw"),
    ],
    ids=["muon and ema", "bf16 and adamw"],
)
def test_training_in_two_parts_ends_with_the_same_bits(
    tmp_path: Path, build: Build, small: Callable[..., Recipe], options: tuple[str, ...]
) -> None:
    options = (*options, "trainer.eval_every=3")
    whole = build(*options)
    fit(whole, tmp_path / "whole")
    fit(build(*options), tmp_path / "parts", stop_at=4)
    rest = build_trainer(small(*options), tmp_path / "parts/checkpoints/step-4/model")
    assert fit(rest, tmp_path / "parts", resume=True).step == 6
    for name, tensor in weights(whole).items():
        assert torch.equal(rest.models["model"].state_dict()[name], tensor), name
    numbers = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert numbers[0] == numbers[1] and '"bleu"' in numbers[0] and '"perplexity"' in numbers[0]


def test_micro_batches_make_the_same_update(build: Build) -> None:
    """Each has another number of tokens: the mean is over all tokens of the step, not of the micro-batches' means."""
    results = []
    for pieces in (1, 5):
        settings = ("trainer.steps=2", "trainer.precision=fp64", "model.dropout=0.3")
        trainer = build(f"trainer.micro_batches={pieces}", *settings)
        fit(trainer)
        results.append(weights(trainer))
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=0, atol=1e-12)


@pytest.mark.parametrize("warmup", [10, 4000])
def test_the_papers_schedule_is_the_cores_times_its_peak(warmup: int) -> None:
    """Section 5.3, Eq. 3, whose peak d^-½ w^-½ is the learning rate to put into a recipe."""
    peak = (512 * warmup) ** -0.5
    for n in (1, 2, warmup - 1, warmup, warmup + 1, 10 * warmup):
        equation = 512**-0.5 * min(n**-0.5, n * warmup**-1.5)
        assert peak * schedule("inverse_sqrt", n - 1, steps=10**6, warmup=warmup) == pytest.approx(equation, rel=1e-12)


def test_evaluation_is_over_the_whole_validation_set_and_does_not_depend_on_its_batches(build: Build) -> None:
    trainer = build()
    metrics = evaluate(trainer)
    total = count = 0.0
    for source, target in zip(trainer.valid.sources, trainer.valid.targets, strict=True):
        with torch.no_grad():
            logits = trainer.model.eval()(torch.tensor([source]), torch.tensor([target[:-1]]))[0]
        total += cross_entropy(logits, torch.tensor(target[1:]), reduction="sum").item()
        count += len(target) - 1
    assert metrics["loss"] == pytest.approx(total / count, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)
    translator = Translator(trainer.model, trainer.tokenizer)
    found = [translator.translate([source], trainer.config.search)[0][0].text for source, _ in trainer.valid.pairs]
    assert metrics["bleu"] == pytest.approx(bleu(found, [target for _, target in trainer.valid.pairs]).score)


def test_evaluation_translates_as_the_recipe_says(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = build("trainer.search.beam=3", "trainer.search.length_penalty=2", "data.valid.reverse=150")
    sources, references = zip(*trainer.valid.pairs, strict=True)
    assert len(sources) > 128  # more than a batch
    found = Translator(trainer.model, trainer.tokenizer).translate(sources, Search(beam=3, length_penalty=2))
    searches, translate = [], Translator.translate

    def recorded(self: Translator, texts: Any, search: Search, **options: Any) -> Any:
        searches.append(search)
        return translate(self, texts, search, **options)

    monkeypatch.setattr(Translator, "translate", recorded)
    assert evaluate(trainer)["bleu"] == pytest.approx(bleu([best.text for best, *_ in found], references).score)
    assert searches == [Search(beam=3, length_penalty=2)]
    total = sum(float(trainer.loss(trainer.valid.batch([i]))["nll"].detach()) for i in range(len(sources)))
    count = sum(len(target) - 1 for target in trainer.valid.targets)
    assert evaluate(trainer)["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_training_that_diverges_goes_on_and_says_so(build: Build) -> None:
    trainer = build()
    with torch.no_grad():
        trainer.model.embedding.weight *= 1e5
    metrics = evaluate(trainer)
    assert metrics["loss"] > 1000 and metrics["perplexity"] == pytest.approx(math.exp(700))


@pytest.mark.parametrize("longer", [0, 2])
def test_a_translation_is_at_most_so_much_longer_than_its_source(build: Build, longer: int) -> None:
    trainer = build("trainer.seed=3")
    translator, texts = Translator(trainer.model, trainer.tokenizer), ["a b c", "a"]
    with torch.no_grad():
        trainer.model.embedding.weight[translator.eos] = 0  # an end that never comes
    found = translator.translate(texts, Search(beam=1, longer=longer))
    for source, (best, *_) in zip(translator.encode(texts), found, strict=True):
        assert not best.ended and len(best.tokens) == len(source) + longer


def test_reverse_tiny_learns_to_reverse() -> None:
    trainer = build_trainer(Recipe.load("reverse-tiny"))
    assert isinstance(trainer, TranslationTrainer)
    fit(trainer)
    sources, targets = zip(*trainer.valid.pairs, strict=True)
    for beam in (1, 4):
        found = Translator(trainer.model, trainer.tokenizer).translate(sources, Search(beam=beam))
        right = sum(best.text == target for (best, *_), target in zip(found, targets, strict=True))
        assert right >= 0.99 * len(targets)


def test_averaging_is_the_mean_of_the_weights_of_the_last_checkpoints(small_run: Path) -> None:
    folders = [small_run / f"checkpoints/step-{step}/model" for step in (6, 4, 2)]
    assert latest_models(folders[0], 3) == folders and latest_models(folders[1], 2) == folders[1:]
    assert latest_models(small_run / "model", 1) == [small_run / "model"]
    states = [Transformer.load(folder).state_dict() for folder in folders]
    mean = average([Transformer.load(folder) for folder in folders]).state_dict()
    for name, tensor in mean.items():
        expected = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(tensor, states[0][name])


def test_what_cannot_be_averaged(small_run: Path) -> None:
    with pytest.raises(
        UsageError, match=r"cannot average 4 checkpoints: .* has 3 up to step-6; .*trainer.keep_checkpoints"
    ):
        latest_models(small_run / "checkpoints/step-6/model", 4)
    small = Transformer.build(vocab_size=9, dim=8, n_heads=2, encoder_layers=1, decoder_layers=1)
    other = Transformer.build(vocab_size=9, dim=8, n_heads=1, encoder_layers=1, decoder_layers=1)
    with pytest.raises(CheckpointError, match="only models with the same config can be averaged"):
        average([small, other])


def test_what_a_recipe_may_not_say(build: Build) -> None:
    with pytest.raises(ConfigError, match=r"trainer.batch_size: must be at least the 16 tokens of the longest target"):
        build("trainer.batch_size=3")
    with pytest.raises(ConfigError, match=r"trainer.compile: must be false: the shape of a batch changes"):
        build("trainer.compile=true")
    with pytest.raises(ConfigError, match=r"data.valid: give source and target, or tsv, or reverse"):
        build("data.valid.tsv=x")
    with pytest.raises(ContractError, match="needs a Transformer as its model, got Linear"):
        trainer = build()
        TranslationTrainer(trainer.config, {"model": torch.nn.Linear(1, 1)}, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "parts",
    [
        ["model.attention.type=GQA"],
        ["model.attention.type=MQA", "model.rotary.type=rotary", "model.norm.type=rmsnorm"],
        ["model.norm_position=post", "trainer.schedule=inverse_sqrt"],
    ],
    ids=str,
)
def test_parts_are_swapped_by_a_word_in_the_recipe(build: Build, parts: list[str]) -> None:
    trainer = build(*parts)
    before = evaluate(trainer)["loss"]
    fit(trainer)
    assert evaluate(trainer)["loss"] < before
    assert trainer.sample().count("→") == 3


def test_bleu_is_sacrebleus() -> None:
    from sacrebleu import corpus_bleu

    found, references = ["A dog runs fast .", "Two men, one dog."], ["A dog runs very fast.", "Two men, one dog."]
    score, signature = bleu(found, references)
    assert score == corpus_bleu(found, [references]).score
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert bleu(references, references).score == pytest.approx(100)

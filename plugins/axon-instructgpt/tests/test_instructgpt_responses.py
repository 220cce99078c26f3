"""Responses: enumerated, sampled, and the prompts they are to."""

import json
from itertools import product

import pytest
import torch

from axon_core import ContextError, DataError, validate
from axon_core.text import ByteTokenizer, EncodedPrompt, Tokenizer, train_tokenizer
from axon_instructgpt.comparisons import Comparisons
from axon_instructgpt.report import Report
from axon_instructgpt.responses import asked, every_response, sampled


class Three(ByteTokenizer):
    """Bytes of which 2 is the end of a text."""

    eos = 2


@pytest.mark.parametrize(("eos", "others", "number"), [(2, (), 1 + 2 + 4 * 3), (None, (), 27), (2, (1,), 2 + 2 + 3)])
def test_all_responses_are_enumerated_and_sampled_as_often_as_they_are_likely(eos, others, number, model_of):
    tokenizer = Three()
    tokenizer.eos, tokenizer.other_ends = eos, frozenset(others)
    model, prompt = model_of(3), EncodedPrompt("p", (0, 1), "line 1")
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.mul_(4)
    responses, probabilities = every_response(model, prompt, tokenizer, 3)
    assert len(responses) == number
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-6)
    from axon_core import Key

    (drawn,) = sampled(model, [prompt], tokenizer, n=4000, response_tokens=3, key=Key((0,)), rows=1000)
    assert all(response in responses for response in drawn)
    counts = torch.tensor([drawn.count(response) for response in responses]) / 4000
    assert 0.5 * (counts - probabilities).abs().sum() < 0.04
    (again,) = sampled(model, [prompt], tokenizer, n=3, response_tokens=3, key=Key((0,)), rows=2)
    assert again == drawn[:3]


def test_prompts_are_named_and_checked(tmp_path, tiny, model_of):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n{"prompt": "bb"}\n')
    model, tokenizer = model_of(258), ByteTokenizer()
    assert asked(str(file), tokenizer, model, 2) == (
        EncodedPrompt("a", (97,), f"line 1 of {file}"),
        EncodedPrompt("bb", (98, 98), f"line 3 of {file}"),
    )
    file.write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    with pytest.raises(DataError, match="line 2"):
        asked(str(file), tokenizer, model, 2)
    file.write_text("")
    with pytest.raises(DataError, match="has no records"):
        asked(str(file), tokenizer, model, 2)
    file.write_text('{"prompt": "a"}\n{"prompt": "ababababab"}\n')
    given = {"policy": str(tiny / "out" / "pretrain"), "prompts": str(file), "response_tokens": 2}
    stage = Comparisons(validate(Comparisons.Config, {**given, "reward": {"type": "regex", "pattern": "a"}}))
    with pytest.raises(ContextError, match="line 2"):
        stage.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def spaced(tmp_path, model_of):
    """The folder of a model that writes pieces that begin with a space, and a file of prompts."""
    words = "the cat sat in the hat and then the rat sat on the mat\n"
    tokenizer = train_tokenizer({"type": "sentencepiece", "vocab_size": 305}, words * 50)
    model = model_of(tokenizer.vocab_size, context=32)
    begins = [i for i in range(tokenizer.vocab_size) if tokenizer.piece(i).startswith(b" ")]
    with torch.no_grad():
        model.embedding.weight.fill_(1)
        model.head.weight.zero_()
        model.head.weight[begins] = 10
    model.save(tmp_path / "model")
    tokenizer.save(tmp_path / "model")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the cat"}\n{"prompt": "on the"}\n')
    return str(tmp_path / "model"), str(tmp_path / "prompts.jsonl")


def test_the_first_space_of_a_response_is_ranked_compared_and_reported(spaced, tmp_path):
    model, prompts = spaced
    given = {"prompts": prompts, "reward": {"type": "regex", "pattern": "^ "}, "response_tokens": 3}
    stage = Comparisons(validate(Comparisons.Config, {**given, "policy": model, "temperature": 2.0}))
    stage.run(tmp_path / "comparisons")
    rankings, pairs = (
        [json.loads(line) for line in (tmp_path / "comparisons" / name).read_text().splitlines()]
        for name in ("rankings.jsonl", "comparisons.jsonl")
    )
    written = [text for one in rankings for text in one["responses"]]
    assert written and all(text.startswith(" ") for text in written)
    assert all(pair[name].startswith(" ") for pair in pairs for name in ("chosen", "rejected"))
    report = Report(validate(Report.Config, {**given, "reference": model, "policies": {}, "pool": 4, "responses": 2}))
    report.run(tmp_path / "report")
    facts = json.loads((tmp_path / "report" / "report.json").read_text())
    assert all(sample["reference"].startswith(" ") for sample in facts["samples"])
    assert facts["policies"]["reference"]["reward"] > 0  # the regular expression matches only a first space


def test_every_token_that_ends_texts_ends_a_ranked_response(spaced, tmp_path):
    model, prompts = spaced
    tokenizer = Tokenizer.load(model)
    pieces = [i for i in range(tokenizer.vocab_size) if tokenizer.piece(i).startswith(b" ")]
    tokenizer.other_ends = frozenset(pieces[::4])
    tokenizer.save(model)
    going = {tokenizer.piece(i).decode() for i in pieces if i not in tokenizer.ends}
    given = {"policy": model, "prompts": prompts, "reward": {"type": "regex", "pattern": "^ "}}
    Comparisons(validate(Comparisons.Config, {**given, "response_tokens": 3, "seed": 1})).run(tmp_path / "ranked")
    rankings = [json.loads(line) for line in (tmp_path / "ranked" / "rankings.jsonl").read_text().splitlines()]
    found = [(text, i in one.get("unfinished", [])) for one in rankings for i, text in enumerate(one["responses"])]
    written = {"".join(pieces): n for n in (1, 2, 3) for pieces in product(going, repeat=n)}
    assert {written[text] == 3 for text, _ in found} == {True, False}
    assert all((written[text] == 3) == cut_off for text, cut_off in found)

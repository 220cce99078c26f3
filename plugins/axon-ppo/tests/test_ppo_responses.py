"""What the trainer `ppo` takes for a response: its text in context, its end, and the tokens it may hold."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for the small models that several test modules share
from small_models import collected, llama, vowels

from axon_core.alignment import Sequences, encode_completion
from axon_core.text import train_tokenizer
from axon_ppo.rollout import action_logits


@pytest.mark.parametrize("offset", [0.0, -3.0, 5.0])
def test_to_be_cut_off_costs_the_same_wherever_the_rewards_zero_is(ragged, make, letters, offset):
    """Of a policy worse than the demonstrations all scores are below 0, where a fixed −1 would be a prize."""

    def reward(prompts, texts):
        return [score + offset for score in vowels(prompts, texts)]

    def scores(**options):
        trainer = make(llama(6), letters("abcde."), ["ab", "c"], reward, batch_size=8, response_tokens=4, **options)
        data = collected(trainer)
        ends = [row[valid][-1].item() == 5 for row, valid in zip(data["tokens"], data["valid"], strict=True)]
        return data["score"], torch.tensor(ends)

    (own, ends), (found, _) = scores(unfinished_penalty=0.0), scores(unfinished_penalty=2.5)
    assert 0 < ends.sum() < 8
    torch.testing.assert_close(own - found, 2.5 * ~ends)


def test_a_reward_and_the_sample_read_the_first_space_of_a_response(make, table):
    words = "the cat sat in the hat and then the rat sat on the mat\n"
    tokenizer = train_tokenizer({"type": "sentencepiece", "vocab_size": 300 + 5}, words * 50)
    policy, seen = table(table.Config(vocab_size=tokenizer.vocab_size, context=64)), []
    begins = [i for i in range(tokenizer.vocab_size) if tokenizer.piece(i).startswith(b" ")]
    with torch.no_grad():
        policy.table.weight.fill_(-1e4)
        policy.table.weight[:, begins] = 0

    def reward(prompts, responses):
        seen.extend(responses)
        return [1.0] * len(responses)

    trainer = make(policy, tokenizer, ["the cat", "on the"], reward, batch_size=4, response_tokens=3)
    data = collected(trainer)
    for row, valid, scored, response in zip(data["tokens"], data["valid"], data["scored"], seen, strict=True):
        prompt = row[valid & ~scored].tolist()
        assert response.startswith(" ")
        assert tokenizer.decode(row[valid].tolist()) == tokenizer.decode(prompt) + response
        assert tokenizer.piece(encode_completion(tokenizer, response)[0]).startswith(b" ")  # what a reward model reads
    assert trainer.sample().startswith("the cat ")


def test_rows_of_the_policy_beyond_the_tokenizers_tokens_are_neither_drawn_nor_counted(make, letters, monkeypatch):
    """A policy with two rows more does what one without them does, though the two are the likeliest."""
    raw = llama(8)

    def padded(features):
        logits = type(raw).logits(raw, features)
        return logits + torch.tensor([0.0] * 6 + [30.0] * 2)

    monkeypatch.setattr(raw, "logits", padded)
    options = {"batch_size": 4, "response_tokens": 4}
    trainer = make(raw, letters("abcde."), ["ab", "c"], vowels, reference=llama(8, seed=1), **options)
    monkeypatch.setattr(trainer.policy, "logits", padded)
    data = collected(trainer)
    assert data["tokens"][data["scored"]].max() < 6
    rows = Sequences(data["tokens"], data["valid"], data["scored"])
    logits, tokens = action_logits(trainer.policy, rows, 1.0)
    expected = logits[:, :6].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
    torch.testing.assert_close(data["logprob"][data["scored"]], expected)
    losses = trainer.loss(data)
    assert losses["objective/entropy"].isfinite() and trainer.sample()

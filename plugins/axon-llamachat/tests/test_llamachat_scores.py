"""Log-probabilities: the model's own numbers, one entry a token, the same streamed, and what lm-eval makes of them."""

from __future__ import annotations

import json
import subprocess
import sys

import openai
import pytest
import torch

from axon_core import ByteTokenizer

TEXT = "The cat sat on the mat – naïve."
IDS = list(TEXT.encode())


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server.url, api_key="none", max_retries=0) as made:
        yield made


def logprobs(model, ids: list[int]) -> torch.Tensor:
    """The log-probability of each token but the first, by one pass of the model."""
    with torch.no_grad():
        scores = model(torch.tensor([ids])).log_softmax(-1)[0]
    return scores[:-1].gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]


def scored(client, prompt, **options):
    asked = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    return client.completions.create(model="tiny", prompt=prompt, **{**asked, **options}).choices


def test_an_echo_has_the_score_of_every_token_of_the_prompt(client, model):
    (choice,) = scored(client, [IDS])
    found = choice.logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(IDS) + 1
    assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
    torch.testing.assert_close(torch.tensor(found.token_logprobs[1:-1]), logprobs(model, IDS), atol=1e-4, rtol=1e-4)
    assert choice.text.startswith(TEXT) and len(set(found.token_logprobs)) > 20


def test_the_tokens_of_a_prompt_are_taken_as_they_are(client, engine):
    before = engine.report().prompt_tokens
    (choice,) = scored(client, [[256, *IDS]])
    assert choice.logprobs.tokens[:2] == ["<bos>", "T"] and choice.logprobs.text_offset[:3] == [0, 0, 1]
    assert engine.report().prompt_tokens - before == len(IDS) + 1


def test_the_most_likely_token_has_the_same_number_in_both_places(client):
    choice = client.completions.create(model="tiny", prompt="The", max_tokens=30, logprobs=3, temperature=0).choices[0]
    for token, logprob, top in zip(
        choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True
    ):
        assert logprob == max(top.values()) == top[token] and len(top) == 3


def test_a_token_that_is_not_likely_is_one_more_entry(client):
    choice = client.completions.create(
        model="tiny", prompt="The", max_tokens=40, logprobs=1, temperature=3.0, seed=0
    ).choices[0]
    scores = zip(choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True)
    sizes = [(len(top), logprob < max(top.values())) for logprob, top in scores]
    assert set(sizes) <= {(1, False), (2, True)} and (2, True) in sizes


@pytest.mark.parametrize("echo", [False, True])
def test_offsets_say_where_a_tokens_text_begins(client, echo):
    (choice,) = scored(client, TEXT, echo=echo, max_tokens=40, temperature=1, seed=5)
    found = choice.logprobs
    assert found.text_offset[0] == 0 and found.text_offset == sorted(found.text_offset)
    whole = [
        (t, at) for t, at in zip(found.tokens, found.text_offset, strict=True) if not t.startswith(("bytes:", "<"))
    ]
    assert len(whole) > 5 and all(choice.text.startswith(token, at) for token, at in whole)


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_has_the_same_scores(client, echo):
    asked = {"max_tokens": 30, "temperature": 1, "seed": 5, "echo": echo, "stop": ["\x00\x01", "zz"], "n": 2}
    whole = scored(client, TEXT, **asked)
    merged = [{"text": "", "tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []} for _ in whole]
    stream = client.completions.create(model="tiny", prompt=TEXT, logprobs=1, stream=True, **asked)
    for event in stream:
        for choice in event.choices:
            merged[choice.index]["text"] += choice.text
            for name, values in choice.logprobs.to_dict().items():
                merged[choice.index][name] += values
    for choice, pieces in zip(whole, merged, strict=True):
        assert {"text": choice.text, **choice.logprobs.to_dict()} == pieces


def test_a_prompt_alone_can_be_scored(client):
    (choice,) = scored(client, [IDS], max_tokens=0)
    assert choice.text == TEXT and len(choice.logprobs.tokens) == len(IDS) and choice.finish_reason == "length"


def test_choices_are_numbered_by_prompt_and_text(client):
    choices = scored(client, [IDS[:5], IDS[:9]], n=2, max_tokens=4, temperature=1, seed=1)
    assert [choice.index for choice in choices] == [0, 1, 2, 3]
    assert [choice.text.startswith(TEXT[:9]) for choice in choices] == [False, False, True, True]
    single = [scored(client, [ids], n=2, max_tokens=4, temperature=1, seed=1) for ids in (IDS[:5], IDS[:9])]
    assert [choice.text for choice in choices] == [choice.text for pair in single for choice in pair]


def test_a_chats_scores_have_the_bytes_of_the_message(client):
    messages = [{"role": "user", "content": "Hello"}]
    asked = {"model": "tiny", "messages": messages, "max_tokens": 30, "seed": 4, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked).choices[0]
    entries = whole.logprobs.content
    assert bytes(b for e in entries for b in e.bytes or []).decode(errors="replace").lstrip() == whole.message.content
    assert len(entries) == 30 and {len(entry.top_logprobs) for entry in entries} == {2}
    assert whole.logprobs.refusal is None
    events = client.chat.completions.create(**asked, stream=True)
    streamed = [e for event in events if event.choices[0].logprobs for e in event.choices[0].logprobs.content]
    assert streamed == entries


def test_tokens_and_texts_of_the_servers_tokenizer(server):
    import httpx

    with httpx.Client(base_url=server.root) as http:
        tokens = http.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": False}).json()
        assert tokens == {"tokens": IDS, "count": len(IDS), "max_model_len": 256}
        assert http.post("/detokenize", json={"tokens": [256, *IDS, 257]}).json() == {"prompt": TEXT}
        assert http.post("/detokenize", json={"tokens": [258]}).status_code == 400
        info = http.get("/tokenizer_info").json()
        assert (info["eos_token"], info["eos_token_id"], info["bos_token_id"]) == (None, 257, 256)


HARNESS = """
import json, sys
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

asked = json.loads(sys.argv[2])
lm = LocalCompletionsAPI(
    base_url=f"{sys.argv[1]}/v1/completions", model="tiny", max_length=256, custom_prefix_token_id=256, max_retries=1,
    batch_size=asked["batch"], num_concurrent=asked["concurrent"],
)
def instances(kind, many):
    return [Instance(kind, {}, tuple(arguments), i) for i, arguments in enumerate(many)]
print(json.dumps({
    "loglikelihood": lm.loglikelihood(instances("loglikelihood", asked["pairs"])),
    "rolling": lm.loglikelihood_rolling(instances("loglikelihood_rolling", [(asked["text"],)])),
    "generated": lm.generate_until(instances("generate_until", [(asked["text"], asked["until"])])),
}))
"""


@pytest.mark.parametrize(("batch", "concurrent"), [(3, 1), (2, 2)])
def test_lm_evals_local_completions(server, model, engine, batch, concurrent):
    """The harness itself finds the numbers that the model has."""
    pairs = [(TEXT, " It ran."), ("", "Alone"), ("Two and two", " are four, or five"), ("A", "b")]
    text = " ".join([TEXT] * 9)  # longer than the context
    until = {"until": ["e"], "max_gen_toks": 12, "do_sample": False}
    asked = {"pairs": pairs, "batch": batch, "concurrent": concurrent, "text": text[:200], "until": until}
    run = subprocess.run(
        [sys.executable, "-c", HARNESS, server.root, json.dumps(asked)], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    encode = ByteTokenizer().encode
    for (context, continuation), (total, greedy) in zip(pairs, found["loglikelihood"], strict=True):
        before = encode(context) or [256]
        answer = engine.submit(prompt=[*before, *encode(continuation)], max_new_tokens=1, echo=True, logprobs=1)
        list(answer)
        own = answer.prompt[len(before) :]
        assert total == sum(score.logprob for score in own)
        assert greedy == all(score.logprob == score.top[0][1] for score in own)
    expected = logprobs(model, [256, *encode(text[:200])]).sum()
    torch.testing.assert_close(torch.tensor(found["rolling"][0]), expected, atol=1e-2, rtol=1e-4)
    (written,) = found["generated"]
    whole = "".join(p.text for p in engine.submit(prompt=text[:200], max_new_tokens=12, sampling={"temperature": 0}))
    assert written == whole.split("e")[0]

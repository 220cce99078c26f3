"""A base and two adapters of it on one server: requests choose, and each answer is that of the merged model."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import httpx

from axon_core.training import Recipe, build_trainer, fit
from axon_lora.merging import merge_adapter

ADAPTERS = {"one": {"rank": 2}, "two": {"rank": 4, "targets": ["feed_forward"], "dora": True}}


def test_requests_choose_an_adapter_and_get_its_merged_models_tokens(command, folder, tmp_path):
    base = shutil.copytree(folder, tmp_path / "base")
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        settings = {"type": "causal_lm", "batch_size": 2, "steps": 4, "context": 32, "eval_tokens": 100, "seed": seed}
        tables = {
            "model": {"init": str(base)},
            "data": {"held_out": 0.001},
            "adapter": {"type": "lora", **options},
            "trainer": {**settings, "optimizer": {"type": "adamw", "lr": 2e-2}},
        }
        recipe = Recipe.of(tables, name, "a test")
        fit(build_trainer(recipe), tmp_path / name, progress=False, recipe={"name": name, **recipe.tables})
        merge_adapter(tmp_path / name, tmp_path / "merged" / name)
    shutil.copytree(base, tmp_path / "merged" / "base")
    names = ["base", *ADAPTERS]
    ways = [{"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "seed": 5}, {"seed": 6, "n": 2}]
    asked = [
        {"model": name, "prompt": prompt, "max_tokens": 30, "logprobs": 1, **way}
        for prompt in ("The ", "a")
        for way in ways
        for name in names  # beside each other, so that each row of a pass could be mistaken for another's
    ]
    served = command(*(str(tmp_path / name) for name in names), "--memory", "6MB")
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda body: _choices(served.root, body), asked))
    assert served.stop()[0] == 0
    alone = command(*(str(tmp_path / "merged" / name) for name in names), "--memory", "6MB")
    for body, answer in zip(asked, answers, strict=True):
        assert answer == _choices(alone.root, body), body  # tokens and their log-probabilities
    assert alone.stop()[0] == 0
    texts = [answer[0]["text"] for answer in answers]
    assert all(len(set(texts[i : i + len(names)])) == len(names) for i in range(0, len(texts), len(names)))


def _choices(root: str, body: dict) -> list[dict]:
    reply = httpx.post(f"{root}/v1/completions", json=body, timeout=60)
    assert reply.status_code == 200 and reply.json()["model"] == body["model"], reply.text
    return reply.json()["choices"]

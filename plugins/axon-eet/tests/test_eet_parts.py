"""Every attention and rotary embedding is served: in blocks where it can be, and text by text where it cannot."""

from dataclasses import dataclass

import pytest
import torch

from axon_core import ATTENTIONS, ByteTokenizer, Request, Sampling, complete
from axon_core.interfaces import Attention, StateSpec
from axon_core.nn import QKV, Linear, attend
from axon_eet import Engine, Question
from axon_eet.runners import BlockRunner, CacheRunner

TOKENIZER = ByteTokenizer()


@dataclass(frozen=True)
class Near:
    """Keys less than `size` positions back."""

    size: int

    def __call__(self, query, key):
        return query - key < self.size


class Windowed(Attention):
    """Attention over the last 20 tokens."""

    cross = False
    between = Near(20)

    def __init__(self, config, rotary=None):
        super().__init__(config, rotary)
        self.qkv = QKV(config.dim, config.n_heads, config.n_heads, config.head_dim)
        self.out = Linear(config.n_heads * config.head_dim, config.dim)

    def forward(self, x, scope, *, memory=None, cache=None):
        q, k, v = self.qkv(x)
        q, k = scope.rotate(self.rotary, q, k)
        k, v = (k, v) if cache is None else cache.append(k=k, v=v)
        return self.out(self.mix(q, k, v, scope).flatten(-2))

    def mix(self, q, k, v, scope):
        return attend(q, k, v, scope, narrow=self.between)

    def state(self):
        per_token = StateSpec((self.config.n_heads, self.config.head_dim), window=20)
        return {"k": per_token, "v": per_token}


def _slope(query, key):
    return -0.3 * torch.arange(1, 5).view(1, 4, 1, 1) * (query - key).abs()


class Sloped(Windowed):
    """Attention with a bias by distance, each head its own."""

    def mix(self, q, k, v, scope):
        return attend(q, k, v, scope, bias=_slope)

    def state(self):
        per_token = StateSpec((self.config.n_heads, self.config.head_dim))
        return {"k": per_token, "v": per_token}


class Joined(Sloped):
    """Attention that makes another key of what the cache returned, and reads a part of it as value."""

    def mix(self, q, k, v, scope):
        k = torch.cat((k, v), -1)
        return attend(torch.cat((q, q), -1), k, k[..., : q.shape[-1]], scope)


class Written(Sloped):
    """Attention written out, with the scope's mask, instead of the core's `attend`."""

    def mix(self, q, k, v, scope):
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k).masked_fill(~scope.mask(k.shape[1]), float("-inf"))
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v)


class Recurrent(Windowed):
    """A decaying sum of keys and values, which a later token reads: one state for the whole text."""

    def forward(self, x, scope, *, memory=None, cache=None):
        q, k, v = self.qkv(x)
        state = q.new_zeros(len(x), *self.state()["s"].shape) if cache is None else cache["s"]
        found = []
        for i in range(x.shape[1]):
            state = 0.9 * state + torch.einsum("bhd,bhe->bhde", k[:, i].sigmoid(), v[:, i])
            found.append(torch.einsum("bhd,bhde->bhe", q[:, i].sigmoid(), state))
        if cache is not None:
            cache["s"] = state
        return self.out(torch.stack(found, 1).flatten(-2))

    def state(self):
        h, d = self.config.n_heads, self.config.head_dim
        return {"s": StateSpec((h, d, d), per_token=False, dtype=torch.float32)}


TOYS = {"windowed": Windowed, "sloped": Sloped, "joined": Joined, "written": Written, "recurrent": Recurrent}
QUESTIONS = [
    Question(prompt="a" * 40, max_new_tokens=22, seed=3, sampling=Sampling(temperature=0.8, top_p=0.9)),
    Question(prompt="b", max_new_tokens=90, sampling=Sampling(temperature=0)),
    Question(prompt="The same beginning, another end", max_new_tokens=10, seed=1),
    Question(prompt="The same beginning, and then", max_new_tokens=20, seed=2, n=2),
]


@pytest.fixture
def make(build):
    """Return a function that builds a small X-Llama with other parts."""

    def build_with(attention="MHA", rotary="rotary"):
        with ATTENTIONS.override(**TOYS):
            return build(attention=attention, rotary=rotary)

    return build_with


def pieces(answer):
    found = list(answer)
    return [[piece for piece in found if piece.choice == i] for i in range(answer.question.n)]


@pytest.mark.parametrize(
    ("parts", "runner", "notes"),
    [
        ({"attention": "MHA"}, BlockRunner, ""),
        ({"attention": "GQA"}, BlockRunner, ""),
        ({"attention": "MQA", "rotary": {"type": "linear", "factor": 2}}, BlockRunner, ""),
        ({"attention": "windowed"}, BlockRunner, ""),
        ({"attention": "sloped"}, BlockRunner, ""),
        ({"attention": "joined"}, BlockRunner, ""),
        ({"attention": "written"}, CacheRunner, "does not use the core's kernels"),
        ({"attention": "recurrent"}, CacheRunner, "keeps a state for the whole text"),
        ({"rotary": {"type": "dynamic", "factor": 2}}, CacheRunner, "beyond 64 tokens its rotary embedding turns"),
    ],
    ids=str,
)
def test_every_part_gives_the_same_beside_others_as_alone_and_in_generation(make, parts, runner, notes):
    model = make(**parts)
    alone = []
    for question in QUESTIONS:
        with Engine(model, TOKENIZER) as engine:
            alone.append(pieces(engine.submit(question)))
    with Engine(model, TOKENIZER, chunk=3) as engine:
        assert isinstance(engine._runner, runner) and notes in "".join(engine.notes)
        assert bool(engine.notes) == bool(notes)
        assert getattr(engine._runner, "cache", None) is None or engine._runner.cache.gathers == (
            "joined" in str(parts)
        )
        for _ in range(2):
            answers = [engine.submit(question) for question in QUESTIONS]
            assert [pieces(answer) for answer in answers] == alone
        assert engine.report().memory.used == 0
    requests = [Request(**{name: getattr(q, name) for name in Request.model_fields}) for q in QUESTIONS]
    with ATTENTIONS.override(**TOYS):
        expected = [complete(model, TOKENIZER, [request])[0] for request in requests]
    assert [[piece.token for piece in texts[0]] for texts in alone] == [completion.tokens for completion in expected]


def test_a_windowed_text_holds_the_blocks_of_its_window_alone(make):
    with Engine(make("windowed"), TOKENIZER, memory=3 * 4 * 4096, chunk=16) as engine:
        answer = engine.submit(prompt="a", max_new_tokens=60)
        held = [engine.report().memory.used // (2 * 4096) for piece in answer if piece]
        assert max(held) <= 3


def test_caches_share_the_memory_and_the_last_text_waits(make):
    model = make("recurrent")
    each = 2 * 4 * 8 * 8 * 4
    with Engine(model, TOKENIZER, memory=2 * each) as engine:
        answers = [engine.submit(prompt="a", max_new_tokens=30, seed=i) for i in range(4)]
        next(answers[0])
        assert engine.report().memory.used <= 2 * each
        for answer in answers:
            assert len(list(answer)) in (29, 30)


def test_a_text_of_higher_priority_does_not_lock_out_those_that_hold_the_memory(make):
    each = 2 * 4 * 8 * 8 * 4
    with Engine(make("recurrent"), TOKENIZER, memory=each, rows=1) as engine:
        low = engine.submit(prompt="a", max_new_tokens=20)
        next(low)
        high = engine.submit(prompt="b", max_new_tokens=3, priority=1)
        assert len(list(high)) == 3 and len(list(low)) == 19

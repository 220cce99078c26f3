"""The paper's claims, checked."""

from __future__ import annotations

import copy
import statistics
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from axon_core.interfaces import Cache, Scope
from axon_core.papers import Outcome
from axon_gqa import timing
from axon_gqa.ablation import CONVERSIONS, HEADS, STEPS, held_out_loss, pretrained, train
from axon_gqa.attention import GroupedQueryAttention, MultiQueryAttention
from axon_gqa.conversion import convert_attention
from axon_gqa.uptraining import SHARE

SEEDS = (0, 1, 2)


def equivalences() -> Outcome:
    """Compare GQA-1 with multi-query attention, and GQA-h with multi-head attention written out head by head."""
    x = torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one, every = _gqa(1), _gqa(HEADS)
    multi_query = MultiQueryAttention(MultiQueryAttention.Config(dim=64, n_heads=HEADS)).double()
    multi_query.load_state_dict(one.state_dict())
    scope = Scope.over(x)
    with torch.no_grad():
        to_mqa = (one(x, scope) - multi_query(x, scope)).abs().max().item()
        to_mha = (every(x, scope) - _multi_head(every, x)).abs().max().item()
    return Outcome(max(to_mqa, to_mha) < 1e-12, f"largest difference {to_mqa:.1e} to MQA and {to_mha:.1e} to MHA")


def cache_size() -> Outcome:
    """Compare the allocated bytes of the key/value caches."""
    sizes = {k: Cache([_gqa(k).state()], 1, 512, dtype=torch.bfloat16, device="cpu").nbytes for k in (1, 2, 4, HEADS)}
    factors = {k: sizes[HEADS] / size for k, size in sizes.items()}
    found = ", ".join(f"GQA-{k} 1/{factor:g}" for k, factor in factors.items())
    return Outcome(all(factor == HEADS / k for k, factor in factors.items()), f"of the cache of {HEADS} heads: {found}")


def mean_pooling() -> Outcome:
    """Convert models to multi-query attention in three ways, train each a little further, and compare the losses."""
    losses = {name: [_converted(seed, 1, name)[1] for seed in SEEDS] for name in CONVERSIONS}
    first, fresh = statistics.fmean(losses["first"]), statistics.fmean(losses["random"])
    found = f"loss {fresh:.3f} from random heads, {first:.3f} from the first head, and from their mean"
    return Outcome("direction" if statistics.fmean(losses["mean"]) < fresh else False, found, losses["mean"], SEEDS)


def conversion_alone() -> Outcome:
    """Measure how much the loss rises when the heads are pooled, before any further training."""
    whole = {seed: held_out_loss(pretrained(seed)) for seed in SEEDS}
    rises = {k: [_converted(seed, k, "mean")[0] - whole[seed] for seed in SEEDS] for k in (1, HEADS // 2)}
    grouped, multi_query = statistics.fmean(rises[HEADS // 2]), statistics.fmean(rises[1])
    found = f"the loss rises by {multi_query:.3f} for MQA, and for GQA-{HEADS // 2} by"
    return Outcome("direction" if grouped < multi_query else False, found, rises[HEADS // 2], SEEDS)


def uptraining() -> Outcome:
    """Train converted models a little further, and measure how much of the lost quality they regain."""
    whole = [held_out_loss(pretrained(seed)) for seed in SEEDS]
    losses: dict[int, float] = {}
    regained: dict[int, list[float]] = {}
    for k in (1, HEADS // 2):
        converted = [_converted(seed, k, "mean") for seed in SEEDS]
        losses[k] = statistics.fmean(after for _, after in converted)
        rises = zip(converted, whole, strict=True)
        regained[k] = [100 * (before - after) / (before - loss) for (before, after), loss in rises]
    mqa, gqa = losses.values()
    found = (
        f"loss {statistics.fmean(whole):.3f} for MHA, {gqa:.3f} for GQA-{HEADS // 2}, {mqa:.3f} for MQA; of what the "
        f"conversion costs, MQA regains {statistics.fmean(regained[1]):.0f} % and GQA-{HEADS // 2}, in %,"
    )
    close = gqa < mqa and statistics.fmean(regained[HEADS // 2]) > 50
    return Outcome("direction" if close else False, found, regained[HEADS // 2], SEEDS)


def decoding_speed() -> Outcome:
    """Measure the median time of a decoding step of one layer, on several rows of a long text."""
    heads = timing.HEADS
    mha, gqa, mqa = (1000 * seconds for seconds in timing.step_seconds((heads, 2, 1)).values())
    found = (
        f"a step after {timing.TOKENS:,} tokens in each of {timing.ROWS} rows takes {mha:.1f} ms with {heads} heads, "
        f"{gqa:.1f} ms with 2 ({mha / gqa:.1f} times as fast), {mqa:.1f} ms with 1 ({mha / mqa:.1f} times)"
    )
    return Outcome("direction" if max(gqa, mqa) < mha else False, found)


@cache
def _converted(seed: int, n_kv_heads: int, how: str) -> tuple[float, float]:
    """Return the loss right after the conversion, and the loss after further training."""
    model = copy.deepcopy(pretrained(seed))
    model.attention = convert_attention(model.attention, n_kv_heads, pool=CONVERSIONS[how](seed))
    before = held_out_loss(model)
    return before, held_out_loss(train(model, round(SHARE * STEPS), 1e-3, seed + 100))


def _gqa(n_kv_heads: int) -> GroupedQueryAttention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GroupedQueryAttention.Config(dim=64, n_heads=HEADS, n_kv_heads=n_kv_heads)
        return GroupedQueryAttention(config).double()


def _multi_head(attention: GroupedQueryAttention, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
    """Multi-head attention with the same weights, as arXiv 1706.03762, Section 3.2.2 writes it: head by head."""
    size, n = attention.config.head_dim, x.shape[1]
    hidden = torch.ones(n, n).triu(1).bool()
    heads = []
    for w_q, w_k, w_v in zip(*(w.split(size) for w in attention.qkv.projection.weight.chunk(3)), strict=True):
        scores = (x @ w_q.T) @ (x @ w_k.T).mT / size**0.5
        heads.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ (x @ w_v.T))
    return torch.cat(heads, -1) @ attention.out.weight.T

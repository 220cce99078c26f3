"""Pseudocode beside code: a step whose line moves away, and a part whose mathematics changes, are noticed."""

from __future__ import annotations

import inspect
import json
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent, indent

import pytest
import torch
from click.testing import CliRunner

from axon_core import DataError, NotRun, UnknownKey
from axon_core.papers import check_claim, find_card
from axon_lab.pseudocode import Anchor, find_span, load_algorithms, missing_lines, transcriptions
from axon_lab.pseudocode.anchors import module_file
from axon_lab.pseudocode.comparisons import COMPARISONS, TOLERANCE, largest_difference
from axon_lab.pseudocode_cli import command

ALGORITHMS = load_algorithms()
ANCHORS = list(dict.fromkeys(anchor for a in ALGORITHMS for step in a.step for anchor in step.code))
PAPER = find_card("lab").paper


def by_id(algorithm):
    return algorithm.id


# The lines of the steps


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=by_id)
def test_every_step_names_lines_that_are_there(algorithm):
    assert missing_lines(algorithm) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS, ids=by_id)
def test_the_transcription_has_each_step_once_and_in_order(algorithm):
    source = inspect.getsource(getattr(transcriptions, algorithm.transcription))
    assert [int(n) for n in re.findall(r"  # (\d+)$", source, re.MULTILINE)] == [*range(1, len(algorithm.step) + 1)]


def test_every_algorithm_has_a_comparison_and_a_place():
    assert {a.id for a in ALGORITHMS} == COMPARISONS.keys()
    assert [a.order for a in ALGORITHMS] == [*range(1, len(ALGORITHMS) + 1)]


class Copied:
    """A copy of the source of one anchor, to be changed."""

    def __init__(self, anchor: Anchor, folder: Path) -> None:
        span = find_span(anchor)
        self.anchor, self.file, self.first, self.last = anchor, folder / "copied.py", span.first, span.last
        self.lines = span.definition.file.read_text("utf-8").splitlines()
        self.margin = " " * (len(self.lines[self.first - 1]) - len(self.lines[self.first - 1].lstrip()))
        self.named = self.lines[self.first - 1 : self.last]

    def span(self, instead: list[str], end: str = ""):
        """Find the anchor where `instead` stands for its lines, and `end` at the end of the file."""
        lines = [*self.lines[: self.first - 1], *instead, *self.lines[self.last :]]
        self.file.write_text("\n".join([*lines, end]), "utf-8")
        return find_span(self.anchor, lambda module: self.file)

    def refused(self, instead: list[str], end: str = "") -> bool:
        with pytest.raises(DataError, match=r"does not have the line|has 2 times the line"):
            self.span(instead, end)
        return True


@pytest.mark.parametrize("anchor", ANCHORS, ids=lambda a: f"{a.at}={a.lines.strip()[:24]}")
def test_a_line_that_is_gone_changed_or_moved_away_is_missed(anchor, tmp_path):
    copied = Copied(anchor, tmp_path)
    named, margin = copied.named, copied.margin
    assert (copied.span(named).first, copied.span(named).last) == (copied.first, copied.last)
    assert copied.refused([f"{margin}pass"])  # gone
    *_, name = re.finditer(r"[^\W\d]\w*", text := "\n".join(named))
    assert copied.refused(f"{text[: name.start()]}changed{text[name.end() :]}".split("\n"))
    elsewhere = f"def elsewhere():\n{indent(dedent(text), '    ')}"
    assert copied.refused([f"{margin}pass"], elsewhere)  # moved to another function
    commented = [f"{margin}# {line.strip()}" for line in named]
    assert copied.refused([*commented, f"{margin}pass"])
    assert copied.refused([f'{margin}"""', *(line.strip() for line in named), f'{margin}"""'])
    assert copied.refused([*named, *named])  # twice: which of them does the step?


@pytest.mark.parametrize("anchor", ANCHORS, ids=lambda a: f"{a.at}={a.lines.strip()[:24]}")
def test_a_line_that_moves_within_its_definition_is_found_where_it_is_now(anchor, tmp_path):
    copied = Copied(anchor, tmp_path)
    span = copied.span([f"{copied.margin}pass", *copied.named])
    assert (span.first, span.last) == (copied.first + 1, copied.last + 1)


def test_what_a_step_names_wrongly_is_told_with_its_number(tmp_path):
    (algorithm,) = [a for a in ALGORITHMS if a.id == "rmsnorm"]
    text = module_file("axon_rmsnorm.norm").read_text("utf-8")
    (tmp_path / "norm.py").write_text(text.replace("y = x * scale", "y = scale * x"), "utf-8")
    (message,) = missing_lines(algorithm, lambda module: tmp_path / "norm.py")
    assert message.startswith("rmsnorm, step 2: axon_rmsnorm.norm:_Normalise.forward does not have the line 'y = x * s")
    (tmp_path / "norm.py").write_text(text.replace("def rms_norm", "def rmsnorm"), "utf-8")
    messages = missing_lines(algorithm, lambda module: tmp_path / "norm.py")
    assert len(messages) == 2 and all("axon_rmsnorm.norm defines no rms_norm" in message for message in messages)
    with pytest.raises(DataError, match="axon_absent, which is not installed"):
        find_span(Anchor(at="axon_absent:f", lines="return"))


# The mathematics of the parts


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", COMPARISONS)
def test_the_part_gives_what_its_transcription_gives(name, seed):
    assert largest_difference(name, seed) <= TOLERANCE


def test_the_kernel_whose_lines_are_shown_is_compared(monkeypatch):
    import axon_core.nn.attention as attention

    seen, kernel = [], attention.causal_attention
    monkeypatch.setattr(attention, "causal_attention", lambda *given: seen.append(given) or kernel(*given))
    for name in ("attention", "multi-head-attention", "grouped-query-attention", "decoder-only-transformer"):
        largest_difference(name)
        assert seen, name
        seen.clear()


SDPA = "axon_core.nn.attention.scaled_dot_product_attention"
BLOCKS = "axon_core.nn.attention.causal_attention"
ROTATION = "axon_core.interfaces.rotary_embedding.Rotation"
ATTENTIVE = ("multi-head-attention", "grouped-query-attention", "decoder-only-transformer")


def wrong_scale(kernel):
    return lambda q, k, v, *_, **options: kernel(q, k, v, **options | {"scale": q.shape[-1] ** -0.5 * 1.0001})


def mask_off_by_one(kernel):
    def one_too_many(q, k, v, *, is_causal=False, attn_mask=None, **options):
        if is_causal:
            attn_mask = torch.ones(q.shape[-2], k.shape[-2]).tril(1).bool()
        return kernel(q, k, v, attn_mask=attn_mask, **options)

    return one_too_many


def blocks_off_by_one(kernel):
    return lambda q, k, v, scale: torch.cat((kernel(q, k, v, scale)[:, 1:], kernel(q, k, v, scale)[:, -1:]), 1)


def without_padding(mask):
    return lambda self, m, narrow: torch.ones_like(mask(self, m, narrow))


def other_sign(of):
    return classmethod(lambda cls, angles, *rest: of(-angles, *rest))


def other_pairs(call):
    return lambda self, x: call(self, x.roll(1, -1)).roll(-1, -1)


def without_eps(norm):
    return lambda x, weight, eps, partial: norm(x, weight, 0.0, partial)


def without_gain(norm):
    return lambda x, weight, eps, partial: norm(x, torch.ones_like(weight), eps, partial)


def next_group(attend):
    return lambda q, k, v, scope: attend(q, k.roll(1, 2), v.roll(1, 2), scope)


def gate_and_up_swapped(forward):
    return lambda self, gate, up: forward(self, up, gate)


def scaled(forward):
    return lambda self, x, *others: 1.0001 * forward(self, x, *others)


def without_residual(forward):
    return lambda self, x, *others: forward(self, x, *others) - x


MUTANTS: dict[str, tuple[str, Callable, tuple[str, ...]]] = {
    "wrong scale": (SDPA, wrong_scale, ("single-query-attention", "attention", *ATTENTIVE)),
    "wrong scale in blocks": (BLOCKS, wrong_scale, ("attention", *ATTENTIVE)),
    "causal mask off by one": (SDPA, mask_off_by_one, ("attention", *ATTENTIVE)),
    "queries of blocks off by one": (BLOCKS, blocks_off_by_one, ("attention", *ATTENTIVE)),
    "padding seen": ("axon_core.interfaces.scope.Scope._mask", without_padding, ("attention", ATTENTIVE[0])),
    "wrong sign of the rotation": (f"{ROTATION}.of", other_sign, ("rotary-embedding", *ATTENTIVE[1:])),
    "other pairs of features": (f"{ROTATION}.__call__", other_pairs, ("rotary-embedding", *ATTENTIVE[1:])),
    "no ε": ("axon_rmsnorm.norm.rms_norm", without_eps, ("rmsnorm", ATTENTIVE[2])),
    "no gain": ("axon_rmsnorm.norm.rms_norm", without_gain, ("rmsnorm", ATTENTIVE[2])),
    "another group's keys": ("axon_gqa.attention.attend", next_group, ATTENTIVE[1:]),
    "gate and up swapped": ("axon_core.nn.GatedSiLU.forward", gate_and_up_swapped, ("swiglu", ATTENTIVE[2])),
    "scaled embedding": ("axon_xllama.embedding.TokenEmbedding.forward", scaled, ("token-embedding", ATTENTIVE[2])),
    "scaled logits": ("axon_xllama.model.XLlama.logits", scaled, ("unembedding", ATTENTIVE[2])),
    "no residual": ("axon_xllama.model.Block.forward", without_residual, (ATTENTIVE[2],)),
}
"""What is wrong with a part, where it is patched, how, and the algorithms that must notice."""


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_part_whose_mathematics_changes_is_noticed(mutant, monkeypatch):
    target, wrong, noticing = MUTANTS[mutant]
    monkeypatch.setattr(target, wrong(pkgutil.resolve_name(target)))
    differences = {name: largest_difference(name) for name in noticing}
    assert min(differences.values()) > 100 * TOLERANCE, differences
    monkeypatch.undo()
    assert largest_difference(noticing[0]) <= TOLERANCE


def test_a_distribution_that_is_not_that_of_the_sampled_token_is_noticed(monkeypatch):
    from axon_lab.pseudocode import comparisons

    draw = comparisons.sample_tokens
    monkeypatch.setattr(comparisons, "sample_tokens", lambda logits, *rest: draw(2 * logits, *rest))
    assert largest_difference("unembedding") >= 1


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_part_that_gives_no_number_differs(number, monkeypatch):
    monkeypatch.setattr("axon_rmsnorm.norm.RMSNorm.forward", lambda self, x: torch.full_like(x, number))
    assert largest_difference("rmsnorm") == float("inf")


def test_a_part_in_float32_differs(monkeypatch):
    monkeypatch.setattr("axon_rmsnorm.norm.RMSNorm.forward", lambda self, x: x.float())
    assert largest_difference("rmsnorm") == float("inf")


# The claims and the command


@pytest.mark.parametrize("claim", PAPER.claim, ids=lambda claim: claim.id)
def test_claims_are_reproduced(claim):
    result = check_claim(PAPER, claim)
    assert result.verdict == "reproduced", result.measured


def claimed(name: str):
    (claim,) = [claim for claim in PAPER.claim if claim.id == name]
    return check_claim(PAPER, claim)


def test_a_claim_fails_where_its_part_is_wrong_and_where_a_line_is_gone(monkeypatch):
    monkeypatch.setattr("axon_xllama.model.Block.forward", lambda self, x, *others: x)
    assert claimed("decoder-only-transformer").verdict == "failed"
    monkeypatch.setattr("axon_lab.claims.missing_lines", lambda algorithm: [f"{algorithm.id}, step 1: gone"])
    assert claimed("steps-have-lines").measured.startswith("token-embedding, step 1: gone")


def test_a_claim_is_not_run_where_a_part_is_not_installed(monkeypatch):
    class Empty:
        def __getitem__(self, key):
            raise UnknownKey(f"no {key}")

    monkeypatch.setattr("axon_lab.pseudocode.random_parts.ATTENTIONS", Empty())
    with pytest.raises(NotRun, match="needs a part that is not installed: no GQA"):
        largest_difference("grouped-query-attention")
    assert claimed("attention").verdict == "not run"
    monkeypatch.setattr("axon_lab.claims.find_spec", lambda package: None if package == "axon_gqa" else package)
    assert claimed("steps-have-lines").verdict == "not run"


def test_the_command_lists_the_algorithms_and_shows_one_with_its_lines():
    listed = CliRunner().invoke(command, [])
    assert [line.split()[0] for line in listed.output.splitlines()] == [a.id for a in ALGORITHMS]
    names = json.loads(CliRunner().invoke(command, ["--json"]).output)
    assert [found["name"] for found in names] == [a.id for a in ALGORITHMS]
    shown = CliRunner().invoke(command, ["rmsnorm"]).output
    span = find_span(ALGORITHMS[6].step[0].code[0])
    assert f"{span.definition.file}:{span.first}  in _Normalise.forward\n        scale = torch.rsqrt(" in shown
    steps = json.loads(CliRunner().invoke(command, ["rmsnorm", "--json"]).output)["steps"]
    assert [step["text"] for step in steps] == [step.text for step in ALGORITHMS[6].step]
    wrong = CliRunner().invoke(command, ["rms"])
    assert "NAME must be one of token-embedding" in str(wrong.exception) and "got 'rms'" in str(wrong.exception)

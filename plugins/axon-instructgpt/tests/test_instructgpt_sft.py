"""The trainer `sft`: what is learned and what is not, packing without a leak, resumption, and what it refuses."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from axon_core import MODELS, AxonError, ConfigError, ContextError, DataError, UsageError, fit
from axon_core.text import CHAT_TEMPLATES, ByteTokenizer, CharTokenizer, Message, SentencePieceTokenizer
from axon_core.training import Recipe, build_trainer, evaluate
from axon_instructgpt import SFTTrainer, pack
from axon_instructgpt.packing import collate
from axon_instructgpt.template import Plain, answers

LLAMA = {"type": "xllama", "dim": 16, "n_layers": 2, "n_heads": 2, "context": 96}
COMPLETIONS = [{"prompt": f"{a}+{b}=", "completion": f"{a + b}{'!' * b}"} for a in range(6) for b in range(4)]


def chat(*texts, system=None):
    roles = ["user", "assistant"] * len(texts)
    said = [] if system is None else [Message(role="system", content=system)]
    return [*said, *(Message(role=role, content=text) for role, text in zip(roles, texts, strict=False))]


def dialogue(*texts):
    return {"messages": [message.model_dump() for message in chat(*texts)]}


@pytest.fixture
def trainer(tmp_path):
    """Return what makes a trainer of records, from tables of the recipe."""

    def make(records=COMPLETIONS, model=None, data=None, saved=None, **options):
        path = tmp_path / "records.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        tables = {
            "model": model or LLAMA,
            "trainer": {"type": "sft", "batch_size": 2, **options},
            "data": {"path": str(path), **(data or {})},
        }
        return build_trainer(Recipe.of(tables, "r", "recipe"), saved)

    return make


def learned(trainer):
    """The texts that are learned, of all training examples."""
    found = []
    for tokens, scored in trainer.data.train:
        found.append("".join(chr(t) if t < 256 else "$" for t, s in zip(tokens, scored, strict=True) if s))
    return found


def test_completions_are_learned_with_their_end_and_prompts_are_not(trainer):
    assert learned(trainer()) == [f"{r['completion']}$" for r in COMPLETIONS[:22]]


@pytest.mark.parametrize(("turns", "expected"), [("all", " one$ three$"), ("last", " three$")])
def test_of_dialogues_the_assistants_turns_are_learned(trainer, turns, expected):
    made = trainer([dialogue("zero", "one", "two", "three"), dialogue("a", "b")], data={"turns": turns})
    assert learned(made) == [expected]


def test_the_loss_is_the_mean_over_learned_tokens_of_a_naive_loop(trainer):
    made = trainer(batch_size=3)
    model = made.model.double().eval()
    batch = made.batch(0)
    total, right, n = 0.0, 0, 0
    for row, documents, scored in zip(batch["tokens"], batch["documents"], batch["scored"], strict=True):
        for number in range(1, int(documents.max()) + 1):
            ids, counts = row[documents == number], scored[documents == number]
            logits = model(ids[None])[0].log_softmax(-1)
            for i in range(1, len(ids)):
                if counts[i]:
                    total -= logits[i - 1, ids[i]].item()
                    right += int(logits[i - 1].argmax() == ids[i])
                    n += 1
    sums, counts = made.loss(batch), made.counts(batch)
    assert counts == {"loss": n, "accuracy": n}
    assert sums["loss"].item() == pytest.approx(total, rel=1e-9)
    assert sums["accuracy"].item() == right


def test_changing_one_packed_example_changes_nothing_in_the_others(trainer):
    made = trainer()
    examples = [list(example) for example in made.data.train[:3]]
    model = made.model.double().eval()

    def logits(row):
        data = collate([row])
        found = model(data["tokens"], valid=data["documents"] > 0, documents=data["documents"])
        return [found[0, data["documents"][0] == number] for number in range(1, len(row) + 1)]

    with torch.no_grad():
        before = logits(examples)
        first, last = [[(t + 7) % 256 for t in examples[0][0]], examples[0][1]], examples[2]
        for changed in (first, [[*first[0], 5, 6], [*first[1], True, True]]):  # the same length, and a longer one
            after = logits([changed, examples[1], last])
            assert not torch.allclose(after[0][: len(before[0])], before[0])
            torch.testing.assert_close(after[1], before[1], rtol=0, atol=1e-12)
            torch.testing.assert_close(after[2], before[2], rtol=0, atol=1e-12)
        for alone, packed in zip(examples, before, strict=True):  # positions start anew
            torch.testing.assert_close(model(torch.tensor([alone[0]]))[0], packed, rtol=0, atol=1e-12)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(20, 40))
def test_packing_keeps_every_example_once_and_fills_rows(lengths, capacity):
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    used = [sum(lengths[i] for i in row) for row in rows]
    assert max(used) <= capacity
    # Best fit leaves at most one row that is not more than half full.
    assert sum(2 * size <= capacity for size in used) <= 1


@pytest.mark.parametrize("pieces", [2, 3])
def test_micro_batches_and_the_order_of_rows_change_nothing(trainer, pieces):
    made = trainer(batch_size=4)
    made.model.double()
    batch = made.batch(0)
    whole = made.loss(batch)["loss"]
    cut = [{name: rows[i::pieces] for name, rows in batch.items()} for i in range(pieces)]
    assert sum(made.loss(piece)["loss"] for piece in cut).item() == pytest.approx(whole.item(), abs=1e-6)
    assert sum(made.counts(piece)["loss"] for piece in cut) == made.counts(batch)["loss"]
    flipped = {name: rows.flip(0) for name, rows in batch.items()}
    assert made.loss(flipped)["loss"].item() == pytest.approx(whole.item(), abs=1e-6)


def test_padding_changes_nothing(trainer):
    made = trainer(batch_size=4)
    batch = made.batch(0)
    pad = torch.nn.functional.pad
    longer = {name: pad(rows, (0, 9), value=-1 if name == "tokens" else 0) for name, rows in batch.items()}
    assert made.loss(longer)["loss"].item() == pytest.approx(made.loss(batch)["loss"].item(), abs=1e-6)


def test_it_learns_and_resumes_bit_for_bit(trainer, tmp_path):
    options = {"steps": 60, "save_every": 20, "batch_size": 8, "optimizer": {"lr": 1e-2, "weight_decay": 0.0}}
    whole = trainer(**options)
    before = evaluate(whole)
    after = fit(whole, tmp_path / "a").metrics
    assert after["loss"] < before["loss"] / 2
    assert after["accuracy"] > before["accuracy"]
    assert after["perplexity"] == pytest.approx(math.exp(after["loss"]))
    fit(trainer(**options), tmp_path / "b", stop_at=20)
    again = trainer(**options, saved=tmp_path / "b" / "checkpoints" / "step-20" / "model")
    fit(again, tmp_path / "b", resume=True)
    for name, parameter in whole.model.state_dict().items():
        assert torch.equal(parameter, again.model.state_dict()[name]), name
    # and a further training begins with what was saved
    further = trainer(model={"init": str(tmp_path / "a")})
    assert evaluate(further)["loss"] == pytest.approx(after["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("records", "error", "words"),
    [
        ([*COMPLETIONS, {"prompt": "a", "completion": ""}], DataError, ["line 25", "completion"]),
        ([*COMPLETIONS, {"prompt": "a"}], DataError, ["line 25", "completion"]),
        ([*COMPLETIONS, {"prompt": "a" * 120, "completion": "b"}], ContextError, ["line 25", "122", "96"]),
        ([*COMPLETIONS, dialogue("a", "b")], DataError, ["line 25"]),
        ([dialogue("a", "b"), dialogue("a")], DataError, ["line 2", "assistant"]),
        ([dialogue("a", "b"), dialogue("a\nHuman: b", "c")], DataError, ["line 2", "Human:"]),
        ([dialogue("a", "b"), {"messages": []}], DataError, ["line 2"]),
        ([COMPLETIONS[0]], DataError, ["at least 2", "1"]),
        ([], DataError, ["no record"]),
    ],
)
def test_bad_records_are_refused_by_name(trainer, records, error, words):
    with pytest.raises(error) as caught:
        trainer(records)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_bad_tables_are_refused_by_place(trainer, tmp_path):
    with pytest.raises(ConfigError, match=r"recipe: data\.turns"):
        trainer(data={"turns": "first"})
    with pytest.raises(AxonError, match=r"data\.template"):
        trainer([dialogue("a", "b")] * 2, data={"template": "nothing"})
    with pytest.raises(AxonError, match="not a run folder"):
        trainer(model={"init": str(tmp_path / "nowhere")})


def test_a_tokenizer_that_cannot_encode_a_record_is_refused_with_its_line(trainer, tmp_path):
    fit(trainer(data={"tokenizer": "char"}, steps=1), tmp_path / "run")
    with pytest.raises(DataError, match=r"line 1.*'?'"):
        trainer([{"prompt": "?", "completion": "!"}] * 2, model={"init": str(tmp_path / "run")})


class Marked(Plain):
    """A template that joins the question's end and the answer's beginning, as a subword tokenizer may."""

    def __call__(self, tokenizer, messages):
        text = "".join({"user": "[", "assistant": "", "system": "{"}[m.role] + m.content for m in messages)
        return tokenizer.encode(text)


def test_any_registered_template_serves(trainer):
    with CHAT_TEMPLATES.override(marked=Marked):
        made = trainer([dialogue("a", "b", "c", "d"), dialogue("a", "b")], data={"template": "marked"})
    assert learned(made) == ["bd"]


def test_a_token_that_spans_question_and_answer_is_the_answers():
    class Joined(Plain):
        def __call__(self, tokenizer, messages):
            tokens = []
            for message in messages:
                begins = message.role == "assistant"
                tokens[len(tokens) - begins :] = [100] if begins else []
                tokens += tokenizer.encode(message.content)
            return tokens

    tokens, spans = answers(Joined(Joined.Config()), ByteTokenizer(), chat("ab", "cd"))
    assert tokens == [97, 100, 99, 100] and spans == [(1, 4)]


@pytest.mark.parametrize("kind", ["byte", "char", "sentencepiece"])
def test_an_open_dialogue_is_what_the_answered_one_begins_with(kind, tmp_path):
    messages = chat("What is it?", "It is a cat.", "And that?", "A dog.", system="Be brief.")
    text = "System: Human: Assistant:\n\n" + " ".join(m.content for m in messages)
    tokenizer = {
        "byte": ByteTokenizer,
        "char": lambda: CharTokenizer("".join(sorted(set(text)))),
        "sentencepiece": lambda: SentencePieceTokenizer.train(text * 20, SentencePieceTokenizer.Config(vocab_size=310)),
    }[kind]()
    template = CHAT_TEMPLATES.build("plain")
    tokens, spans = answers(template, tokenizer, messages)
    assert [tokenizer.decode([*tokenizer.encode("a"), *tokens[a:b]])[1:] for a, b in spans] == [
        " It is a cat.",
        " A dog.",
    ]
    opened = template(tokenizer, messages[:-1])
    assert tokens[: len(opened)] == opened
    said = "System: Be brief.\n\nHuman: What is it?\n\nAssistant: It is a cat.\n\nHuman: And that?\n\nAssistant: A dog."
    assert tokenizer.decode(tokens) == said


def test_the_template_llama2_writes_llama_2s_format():
    tokenizer, template = ByteTokenizer(), CHAT_TEMPLATES.build("llama2")
    messages = chat("Hi", "Hello", "Bye", "So long", system="S")
    tokens, spans = answers(template, tokenizer, messages)
    shown = "".join({256: "<s>", 257: "</s>"}.get(t) or chr(t) for t in tokens)
    assert shown == "<s>[INST] <<SYS>>\nS\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST] So long </s>"
    assert [tokenizer.decode(tokens[a:b]) for a, b in spans] == [" Hello ", " So long "]
    assert all(tokens[b - 1] == tokenizer.eos for _, b in spans)
    opened = template(tokenizer, messages[:-1])
    assert tokens[: len(opened)] == opened
    with pytest.raises(UsageError, match="INST"):
        answers(template, tokenizer, chat("[INST]", "x"))


def test_a_recipe_names_llama_2s_template(trainer):
    records = [dialogue("zero", "one", "two", "three"), dialogue("a", "b")]
    made = trainer(records, data={"template": "llama2"}, steps=1)
    assert learned(made) == [" one $ three $"]
    fit(made)
    with pytest.raises(DataError, match=r"line 1 of .* needs a tokenizer with bos and eos"):
        trainer(records, data={"template": "llama2", "tokenizer": "char"})


def test_models_without_documents_would_be_noticed(trainer):
    """A bug put in: documents not passed on. The test of the leak must see it."""
    made = trainer()
    model = made.model.double().eval()
    data = collate([[made.data.train[0], made.data.train[1]]])
    with torch.no_grad():
        right = made.loss(data)["loss"]
        features = model.features
        model.features = lambda tokens, *, valid, documents: features(tokens, valid=valid)
        wrong = made.loss(data)["loss"]
    assert abs(wrong - right) > 1e-4


def test_a_model_of_another_kind_is_refused(trainer):
    with pytest.raises(AxonError, match="CausalLM"):
        SFTTrainer(SFTTrainer.Config(), {"model": torch.nn.Linear(1, 1)}, trainer().data)
    assert "sft" not in MODELS

"""The README's commands, run in its order with tiny settings, and the curves that are left behind."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

from matplotlib.figure import Figure

from axon_core import validate
from axon_core.cli import main
from axon_core.text import Comparison, read_records

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
TINY = ["trainer.steps=2", "trainer.batch_size=4", "trainer.warmup=0", "trainer.eval_every=1"]


def test_the_commands_run(saved, comparisons, tmp_path, monkeypatch, capsys):
    saved("sft")
    (tmp_path / "runs").mkdir()
    shutil.move(tmp_path / "sft", tmp_path / "runs" / "sft")
    monkeypatch.chdir(tmp_path)
    titles = list[str]()
    save = Figure.savefig

    def noted(figure, *args, **options):
        titles.extend(axes.get_title() for axes in figure.axes)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    commands = [shlex.split(line) for line in re.findall(r"^axon (.*)", README, re.MULTILINE)]
    assert [command[0] for command in commands] == ["train", "generate", "evaluate"]
    for command in commands:
        more = [word for text in TINY for word in ("--set", text)] if command[0] == "train" else []
        assert main([*command, *more]) == 0
    assert "rewards/accuracies" in capsys.readouterr().out
    assert (tmp_path / "runs/dpo/dpo.png").read_bytes().startswith(b"\x89PNG")
    assert {"margin, nats", "rewards, nats", "comparisons in the right order"} <= set(titles)


def test_the_line_of_data_is_a_comparison(tmp_path):
    (line,) = re.findall(r"`(\{.prompt.*\})`", README)
    (tmp_path / "one.jsonl").write_text(line)
    assert read_records(tmp_path / "one.jsonl", Comparison) == [
        validate(Comparison, {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"})
    ]

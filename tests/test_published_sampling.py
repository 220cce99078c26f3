"""The sampling settings of a checkpoint are used where the user does not say otherwise."""

import json

import click
import pytest
from click.testing import CliRunner

from axon_core.cli import generation_options
from axon_core.generation import PUBLISHED, published_sampling


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (
            {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 2]},
            {"temperature": 0.6, "top_p": 0.9},
        ),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"top_k": 0, "repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
        ({"temperature": -1, "top_p": "wide", "top_k": 20}, {"top_k": 20}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"do_sample": True, "top_k": 0}, {"temperature": 1.0}),
        ({"do_sample": "yes", "temperature": "0.6", "min_p": True}, {}),
        ([], {}),
    ],
    ids=str,
)
def test_what_a_folder_sets(tmp_path, values, found):
    (tmp_path / PUBLISHED).write_text(json.dumps(values))
    assert published_sampling(tmp_path) == found


def test_a_folder_without_the_file_or_with_a_damaged_one_sets_nothing(tmp_path):
    assert published_sampling(tmp_path) == {}
    (tmp_path / PUBLISHED).write_text("{")
    assert published_sampling(tmp_path) == {}


def test_the_user_has_the_last_word(tmp_path):
    @click.command()
    @click.argument("run")
    @generation_options
    def command(run, sampling, **_):
        click.echo(sampling.model_dump_json())

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / PUBLISHED).write_text(json.dumps({"temperature": 0.6, "top_k": 20}))
    said = json.loads(CliRunner().invoke(command, [str(tmp_path), "--temperature", "0.8"]).output)
    assert (said["temperature"], said["top_k"]) == (0.8, 20)
    said = json.loads(CliRunner().invoke(command, [str(tmp_path / "nothing")]).output)
    assert (said["temperature"], said["top_k"]) == (0.8, None)

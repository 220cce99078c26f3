"""A model's folder whose config asks for more than its weights are."""

import json

import pytest

from axon_core import AxonError
from axon_core.checkpoint import load_config
from axon_xllama import XLlama


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 10**12},
        {"n_layers": 10**30},
        {"dim": 1 << 31},
        {"dim": 1 << 61},
        {"vocab_size": 10**15},
        {"hidden_dim": 10**30},
        {"n_heads": 10**26},
        {"n_heads": 10**15 + 37},
        {"attention": {"type": "GQA", "head_dim": 1 << 40}},
    ],
    ids=str,
)
def test_sizes_that_the_weights_do_not_bear_out(tmp_path, changes):
    XLlama.build(vocab_size=50, context=16, dim=16, n_layers=2, n_heads=2).save(tmp_path)
    facts = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**facts, "config": facts["config"] | changes}))
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(AxonError, match=r"than the one in the file|fit 64 bits|less than or equal to 65536"):
        load_config(tmp_path, XLlama)

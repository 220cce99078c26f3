"""Axon's core: registries, interfaces and one training loop for AI research made of plugins."""

from axon_core._lazy import attach

_find, __dir__, __all__ = attach(
    __name__,
    {
        "config": ["Config", "Count", "at", "validate"],
        "documents": ["check_unpacked", "gunzipped", "parse_json", "parse_toml", "to_toml"],
        "errors": [
            "AmbiguousKey",
            "AxonError",
            "CheckpointError",
            "ConfigError",
            "ContextError",
            "ContractError",
            "DataError",
            "Interrupted",
            "PluginLoadError",
            "TrainingError",
            "UnknownKey",
            "UsageError",
            "first_line",
        ],
        "folders": ["data_files", "refuse_folder"],
        "generation.api": ["Chunk", "Completion", "Request", "chunks", "complete", "generate", "stream"],
        "generation.sampling": ["Sampling"],
        "interfaces.attention": ["Attention"],
        "interfaces.cache": ["Cache", "LayerCache", "StateSpec"],
        "interfaces.model": ["CausalLM", "Model"],
        "interfaces.norm": ["Norm"],
        "interfaces.rotary_embedding": ["RotaryEmbedding", "Rotation"],
        "interfaces.scope": ["Scope"],
        "json_text": ["to_json"],
        "nn.attention": ["QKV"],
        "nn.linear": ["Linear", "StackedLinear"],
        "papers.claims": ["NotRun", "Outcome"],
        "paths": ["expanded"],
        "escaping": ["in_markdown", "printable", "printable_json"],
        "precision": ["wide_dtype", "widen"],
        "processes": [
            "assembled",
            "from_first",
            "is_first",
            "own",
            "rank",
            "restored",
            "sum_numbers",
            "together",
            "worker",
            "workers",
            "world",
        ],
        "randomness": ["Key", "forked"],
        "registries": ["ATTENTIONS", "MODELS", "NORMS", "ROTARY_EMBEDDINGS"],
        "registry.registry": ["Registry", "refresh"],
        "registry.spec": ["Spec"],
        "text.chat_template": ["CHAT_TEMPLATES", "ChatTemplate"],
        "text.corpus": ["TextConfig", "TextData", "Windows"],
        "text.tokenizer": ["ByteTokenizer", "CharTokenizer", "DecodeStream", "SentencePieceTokenizer", "Tokenizer"],
        "training.build": ["build_trainer"],
        "training.loop": ["evaluate", "fit"],
        "training.parallel.group": ["joined"],
        "training.recipe": ["Recipe"],
        "training.trainer": ["Trainer"],
        "training.trainers": ["TRAINERS"],
    },
)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("axon-core")
    return _find(name)

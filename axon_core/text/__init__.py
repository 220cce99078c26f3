"""Text and tokens: tokenizers, chat templates, records, prompts, corpora, the order of examples."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "chat_template": ["CHAT_TEMPLATES", "ChatTemplate"],
        "corpus": ["TextConfig", "TextData", "TextExamples", "Windows", "read_text", "split_text"],
        "data_table": ["load_language_data"],
        "jinja_template": ["JinjaTemplate", "published_template"],
        "language_data": ["LanguageExamples", "LanguageData", "SourcePlan"],
        "order": ["Order"],
        "pipeline_tokenizer": ["PipelineTokenizer", "byte_characters"],
        "prompts": ["EncodedPrompt", "check_room", "encode_prompts"],
        "records": [
            "Comparison",
            "CompletionRecord",
            "Dialogue",
            "Message",
            "Ranking",
            "Text",
            "line_names",
            "read_json_lines",
            "read_prompts",
            "read_records",
            "split_records",
        ],
        "shards.data": ["TokenData", "TokensConfig"],
        "sentencepiece_model": ["PieceKind", "SentencePiece", "SentencePieceModel"],
        "tokenizer": [
            "PAD",
            "ByteTokenizer",
            "CharTokenizer",
            "SentencePieceTokenizer",
            "Tokenizer",
            "train_tokenizer",
        ],
    },
)

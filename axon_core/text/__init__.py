"""Text and tokens: tokenizers, chat templates, records, prompts, corpora, the order of examples."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "chat_template": ["CHAT_TEMPLATES", "ChatTemplate"],
        "corpus": ["TextConfig", "TextData", "TextExamples", "Windows", "read_text", "split_text"],
        "data_table": ["load_language_data"],
        "jinja_template": ["JinjaTemplate", "published_template"],
        "json_rows": ["read_json_lines"],
        "language_data": ["LanguageExamples", "LanguageData", "SourcePlan"],
        "order": ["Order"],
        "pipeline_tokenizer": ["PipelineTokenizer", "byte_characters"],
        "prompts": ["EncodedPrompt", "check_room", "encode_asked", "encode_prompts"],
        "records": [
            "Comparison",
            "CompletionRecord",
            "Dialogue",
            "Feedback",
            "Message",
            "Prompt",
            "PromptRecord",
            "Ranking",
            "Records",
            "Text",
            "line_names",
            "prompt_texts",
            "read_prompts",
            "read_records",
            "split_records",
        ],
        "schemas.reading": ["read_comparisons", "read_demonstrations", "read_feedback", "read_prompt_records"],
        "schemas.table": ["RowsConfig"],
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

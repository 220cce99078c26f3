"""What alignment methods share: log-probabilities, rewards, responses, roles."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "logprobs": ["Sequences", "completion_logprobs", "encode_completion", "token_entropies", "token_logprobs"],
        "replies": ["encode_replies"],
        "responses": ["Response", "is_finished", "response_text", "sample_responses"],
        "rewards": ["Scorer", "score_responses"],
        "roles": ["require_role"],
    },
)

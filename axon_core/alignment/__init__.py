"""What alignment methods share: log-probabilities, rewards, responses, roles."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "logprobs": ["Sequences", "completion_logprobs", "encode_completion", "token_entropies", "token_logprobs"],
        "responses": ["Response", "ended", "respond", "response_text"],
        "rewards": ["Scorer", "scored"],
        "roles": ["role"],
    },
)

"""Papers: cards, their claims, and the scaffold for a new one."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "card": ["Card", "Paper", "cards", "find_card", "find_recipe"],
        "claims": ["NotRun", "Outcome", "check_claim"],
    },
)

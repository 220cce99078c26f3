"""Registries: entry points become entries, entries become classes; one broken distribution never hurts another."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "environment_lock": [
            "LOCK",
            "EnvironmentLock",
            "installed_plugins",
            "lock_environment",
            "named_plugins",
            "read_lock",
        ],
        "keys": ["key_of"],
        "lock_comparison": ["lock_differences"],
        "optional": ["import_optional", "new_figure"],
        "parts": ["part", "part_config"],
        "registry": ["Registry", "refresh", "registry_of"],
        "spec": ["Spec"],
        "suggest": ["install_line"],
    },
)

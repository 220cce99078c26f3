"""The command `axon`. Each subcommand is a module of this package or of a plugin, imported when it runs."""

from axon_core._lazy import attach

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "app": ["cli", "main"],
        "generate": ["generate_command"],
        "options": [
            "Opened",
            "device_option",
            "generation_options",
            "inference_options",
            "log_option",
            "quantize_option",
            "report_device",
            "training_device_option",
        ],
        "output": [
            "ProgressLine",
            "echo",
            "echo_generated",
            "echo_renewed",
            "json_option",
            "print_json",
            "print_table",
        ],
    },
)

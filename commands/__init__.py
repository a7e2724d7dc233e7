"""The command line: `llm-manager` and its subcommands."""

"""The `mnemoscope` command."""

"""Writers of memory models, one module per framework."""

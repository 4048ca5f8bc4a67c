"""The command line: one module a command; `app` joins them."""

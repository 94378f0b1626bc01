"""Which backend, with which options: settings, plugins, URLs."""

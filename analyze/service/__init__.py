"""A store over HTTP: what it holds, for whoever may ask; nothing can be written through it. docs/serve.md."""

"""Who generates text: the transformers engine (default, in the worker) and OpenAI-compatible endpoints."""

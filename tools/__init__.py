"""What the agent can do: one file per tool, one folder per process of the self-improvement loop."""

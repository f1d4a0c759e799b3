"""Heavy work as commands on files: a job is a folder, the worker is a process that runs it, the client waits for it."""

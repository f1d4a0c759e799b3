"""What is remembered: content-addressed records, the run's artifacts, the vector index over them, lessons."""

"""Self-consistency (arXiv 2203.11171): of several sampled answers to a question, the most frequent one.

For short answers that are compared as text. An inference policy of its own: no run uses it, because evaluation compares
greedy answers; bench/self_consistency.py measures what it brings and costs.
"""

from tools.engines.base import Completion


def majority(samples: list[Completion]) -> Completion:
    """Return a sample of the most frequent answer; of equally frequent ones the likeliest sample.

    Answers that were cut off have no vote unless all were. Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("a vote needs at least one sample")
    voters = [sample for sample in samples if sample.finish == "stop"] or samples
    votes: dict[str, list[Completion]] = {}
    for sample in voters:
        votes.setdefault(sample.text.strip(), []).append(sample)
    likeliest = [max(group, key=lambda sample: sample.logprob) for group in votes.values()]
    return max(likeliest, key=lambda sample: (len(votes[sample.text.strip()]), sample.logprob))

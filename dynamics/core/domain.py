"""What a run's world can say about sentences, actions and frames."""


def normalised_text(sentence: str) -> str:
    """Canonical meaning where no parser exists: lower case, single spaces, no final full stop."""
    return " ".join(sentence.lower().split()).rstrip(".")

"""What a run learns from, where that is not the token stream of continual pretraining."""

"""Learning from what annotators accept: what is kept, and later how the model is tuned."""

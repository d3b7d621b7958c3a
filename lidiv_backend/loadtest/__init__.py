"""Annotators who click, on this machine alone: what a server bears, what a lost replica costs."""

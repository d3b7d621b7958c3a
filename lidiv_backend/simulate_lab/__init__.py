"""A lab's first day, replayed: annotators click, the model learns, and clicks are counted."""

"""Images: where they come from, how they are converted, pushed into a node and found there again."""

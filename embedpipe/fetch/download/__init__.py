"""Download processes: scheduling, threads, and the conversion of responses to stored images."""

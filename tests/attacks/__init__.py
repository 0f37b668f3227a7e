"""What a hostile tenant tries, one attempt a row, each with one sentence; the verdict of all: nothing happens."""

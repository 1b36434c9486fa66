"""Values that every layer speaks of: keys and rows, members and clusters, the messages. Pure: no I/O, no clock, no randomness."""

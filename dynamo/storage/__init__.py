"""Where rows live: the `StorageEngine` interface, its engines, the commit thread, the data directory. Knows no Trio."""

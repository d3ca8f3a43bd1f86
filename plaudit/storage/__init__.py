"""Files that appear whole or not at all, their checksums, Arrow files, the cache, worker processes."""

"""What rows look like: readers and writers of each format."""

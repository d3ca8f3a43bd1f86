"""Where rows come from: files, the Hub, the embedded corpus."""

"""What lies on disk or on the Hub: files, facts, cards, and the way to read them, checked."""

"""Components on disk and on the Hub: files, facts, cards, and how to read them safely."""

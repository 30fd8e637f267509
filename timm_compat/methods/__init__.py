"""The losses and closed forms that make components compatible; each file cites its source."""

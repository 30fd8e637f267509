"""Joint training in one space, and joining it with a frozen backbone."""

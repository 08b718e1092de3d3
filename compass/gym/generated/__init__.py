"""Tasks that a program makes, small enough for a debug model; the ordinary domains judge them."""

"""One page about one or several runs, self-contained: what it shows, and how it is put together."""

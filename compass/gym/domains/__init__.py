"""What each kind of task asks and how its answers are judged."""

"""Multiple choice: how options are asked, and which of them an answer means."""

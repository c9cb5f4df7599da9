"""Files in and out: text, JSON and CSV as every reader takes them, and what is safe to show."""

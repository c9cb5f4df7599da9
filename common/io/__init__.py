"""Reading and writing files: text, JSON and CSV for all readers, and what is safe to show."""

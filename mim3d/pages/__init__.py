"""Pages for a browser: HTML from arrays and tables, with their scripts and styles."""

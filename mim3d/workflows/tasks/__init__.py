"""What a fine-tuning learns: one module a task, behind one face."""

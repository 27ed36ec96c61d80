"""Evidence: tasks, statistics, tables and the report. Models are only known as `TextGenerator`."""

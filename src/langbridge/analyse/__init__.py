"""Why it works: studies, each one file, and the diagnosis of a run whose language does badly."""
